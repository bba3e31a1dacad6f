"""Figures that several packages go by."""

from __future__ import annotations

from . import units

FLOOR_BYTES = 64 * units.MIB  # what must be free where QEMU writes: below it, nothing is begun there
