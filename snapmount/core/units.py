"""Sizes and times as people read them."""

from __future__ import annotations

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


def duration(seconds: float) -> str:
    """A span of time in its two leading units: '42s', '5m 12s', '3h 5m', '2d 4h'."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    if minutes:
        return f"{minutes}m {whole % 60}s"
    return f"{whole}s"
