"""Sizes and times as people read them."""

from __future__ import annotations

import itertools
import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(size_bytes: int) -> str:
    """A size in binary units, rounded to a decimal place: 1536 is '1.5 KiB', 64 * MIB is '64 MiB'."""
    power = min(max(size_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    if round(size_bytes / 1024**power, 1) >= 1024 and power < len(_UNITS) - 1:
        power += 1
    if size_bytes == 1:
        return "1 byte"
    return f"{size_bytes / 1024**power:.1f}".removesuffix(".0") + f" {_UNITS[power]}"


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(text: str) -> float:
    """The seconds of '90', '90s', '15m', '2h', '1d 12h' (as duration() writes it) or '1w'.  Raises ValueError."""
    parts = [re.fullmatch(r"([0-9]+)([smhdw])", word) for word in text.split()]
    if text.isascii() and text.isdecimal():
        seconds = int(text)
    elif parts and all(parts):
        seconds = sum(int(part[1]) * _SECONDS[part[2]] for part in parts if part)
    else:
        raise ValueError(f"{text!r} is no span of time such as 90s, 15m, 2h or 1d")
    if not 0 < seconds <= _SECONDS["w"] * 520:
        raise ValueError(f"{text!r} is not between a second and ten years")
    return float(seconds)


def parse_memory(text: str) -> int:
    """The KiB of '512M', '2G' or '1536 MiB'.  Raises ValueError."""
    match = re.fullmatch(r"([1-9]\d{0,9}) ?([KMGT])(?:iB)?", text, re.ASCII)
    if not match:
        raise ValueError(f"{text!r} is no size such as 512M or 2G")
    return int(match[1]) << 10 * "KMGT".index(match[2])


def duration(seconds: float) -> str:
    """A span of time in its two leading units, the second one unless it is 0: '42s', '5m 12s', '3h', '2d 4h'."""
    whole = max(0, int(seconds))
    for (unit, length), (smaller, part) in itertools.pairwise((("d", 86400), ("h", 3600), ("m", 60), ("s", 1))):
        if whole >= length:
            count, rest = whole // length, whole % length // part
            return f"{count}{unit} {rest}{smaller}" if rest else f"{count}{unit}"
    return f"{whole}s"


def moment(seconds: float) -> str:
    """A span of time that is short: '43 ms', '1.2 s'."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f}".removesuffix(".0") + " s"


def rate(bytes_per_s: float) -> str:
    """A rate as people read it: '312 MiB/s'."""
    return f"{size(round(bytes_per_s))}/s"
