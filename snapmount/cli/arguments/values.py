"""The values that options take: each function is a type of argparse's, and raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import math
import os

from ...core import units
from ...core.checkpoint import LAST, is_name
from ...core.qcow2layout import BACKING_NAME_MAX, CLUSTER_BYTES_MAX, CLUSTER_BYTES_MIN, Backing


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def pause(text: str) -> float:
    """A number of seconds; 0 is one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, or 0")
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


def checkpoint(text: str) -> str:
    """The name of a checkpoint."""
    if not is_name(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be a checkpoint's name: letters, digits and _ . : + - can, 64 at most, and not 'last'"
        )
    return text


def since(text: str) -> str:
    """The name of a checkpoint, or 'last'."""
    return text if text == LAST else checkpoint(text)


def whole(text: str) -> int:
    """A whole number; 0 is one."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def cluster_size(text: str) -> int:
    """The bytes of a power of two such as 64K."""
    wanted = size(text)
    if not CLUSTER_BYTES_MIN <= wanted <= CLUSTER_BYTES_MAX or wanted & (wanted - 1):
        raise argparse.ArgumentTypeError(f"{text} is not a power of two from 4K to 2M")
    return wanted


def disk_device(text: str) -> tuple[str, str]:
    """A disk and the block device for it."""
    disk, separator, device = text.partition("=")
    if not (disk and separator and device.startswith("/")):
        raise argparse.ArgumentTypeError(f"{text} is not of the form vda=/dev/NAME")
    return disk, device


def disk_driver(text: str) -> tuple[str, str]:
    """A disk and the storage driver, or the path of the hook, for it."""
    disk, separator, driver = text.partition("=")
    if not (disk and separator and driver):
        raise argparse.ArgumentTypeError(f"{text} is not of the form vda=DRIVER or vda=/path/to/hook")
    return disk, driver


def count(text: str) -> int:
    """A number of processors."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 4096")
    return int(text)


def disk_backing(text: str) -> tuple[str, Backing]:
    """A disk, and the backing file for the qcow2 file of its changes."""
    disk, _, backing = text.partition("=")
    kind, _, name = backing.partition(":")
    if not (disk and kind.isascii() and kind.isalnum() and name):
        raise argparse.ArgumentTypeError(f"{text} is not of the form vda=qcow2:/path/to/file")
    if len(os.fsencode(name)) > BACKING_NAME_MAX:
        raise argparse.ArgumentTypeError(f"the backing file's name has more than {BACKING_NAME_MAX} bytes: {name}")
    return disk, Backing(name, kind)


def duration(text: str) -> float:
    """The seconds of a span of time such as 90s, 15m or 2h."""
    try:
        return units.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
