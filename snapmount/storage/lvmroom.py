"""How much room a classic snapshot gets for what the guest overwrites.  Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import names, units
from ..errors import SpaceError
from .lvmreport import Volume

CHUNK_BYTES = 4096  # lvm2's default, lvcreate(8)
_EXCEPTION_BYTES = 16
LEAST_SHARE = 10  # of the volume, the tenth part
LEAST_BYTES = 16 * units.MIB
SPARED_SHARE = 2  # of the group's free extents, the half, is left for others: volumes and pools that are to grow


@dataclass(frozen=True)
class OwnRoom:
    """The room of a classic snapshot."""

    size_bytes: int
    is_enough: bool  # for all that can ever be overwritten


def judged(volume: Volume, snapshots: int = 1) -> OwnRoom:
    """That of a classic snapshot, one of so many that are taken in its volume group at once.

    All that can ever be overwritten, if half of what is free suffices for it; else that half, or, if it is less than a
    tenth of the volume, a tenth.  Raises SpaceError if that is not free.
    """
    group = volume.group
    most = _extents(_most_bytes(volume.size_bytes), group.extent_bytes)
    least = _extents(min(most, max(volume.size_bytes // LEAST_SHARE, LEAST_BYTES)), group.extent_bytes)
    free = group.free_bytes // snapshots // group.extent_bytes * group.extent_bytes
    if free < least:
        each = f" for each of {snapshots} snapshots" if snapshots > 1 else ""
        raise SpaceError(
            f"the volume group {group.name} has {units.size(free)} free{each}, "
            f"and that of {volume} needs {units.size(least)} at least",
            names.command("vgextend", group.name, "DEVICE"),
        )
    spare = free // SPARED_SHARE // group.extent_bytes * group.extent_bytes
    size = min(most, max(least, spare))
    return OwnRoom(size, size == most)


def _most_bytes(size_bytes: int) -> int:
    """What a snapshot of a volume that is overwritten as a whole needs: a header, the chunks, and the chunks of the
    list of them (lvm2's _cow_max_size(); lvcreate makes a snapshot no larger, whatever it is asked for).
    """
    chunks = -(-size_bytes // CHUNK_BYTES)
    a_list = CHUNK_BYTES // _EXCEPTION_BYTES
    needed = 1 + chunks + (chunks + a_list) // a_list
    return (needed + -(-needed // 64)) * CHUNK_BYTES  # some kernels lose as much


def _extents(size_bytes: int, extent_bytes: int) -> int:
    """The size rounded up to whole extents."""
    return -(-size_bytes // extent_bytes) * extent_bytes
