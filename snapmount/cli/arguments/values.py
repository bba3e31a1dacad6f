"""The values that options take: each function is a type of argparse's, and raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import math

from ...core import units


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def memory(text: str) -> int:
    """The KiB of a size such as 512M or 2G."""
    try:
        return units.parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str) -> int:
    """The bytes of such a size."""
    return memory(text) * units.KIB


def disk_device(text: str) -> tuple[str, str]:
    """A disk and the block device for it."""
    disk, separator, device = text.partition("=")
    if not (disk and separator and device.startswith("/")):
        raise argparse.ArgumentTypeError(f"{text} is not of the form vda=/dev/NAME")
    return disk, device


def count(text: str) -> int:
    """A number of processors."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 4096")
    return int(text)


def duration(text: str) -> float:
    """The seconds of a span of time such as 90s, 15m or 2h."""
    try:
        return units.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
