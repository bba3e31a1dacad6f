"""/dev/kvm."""

from __future__ import annotations

from pathlib import Path

DEVICE = "/dev/kvm"


def is_there() -> bool:
    """Whether this host has the device."""
    return Path(DEVICE).exists()
