"""The proof of a view: it holds exactly the writes 1..S of the guest's sequence, for some S, across all disks.

The guest (writer.c) makes write N only after write N-1 has completed, at a place that follows from the seed and N.  So
the state of all disks after S writes can be computed, and must equal the view byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

SECTOR = 512
MAGIC = b"SNAPSEQ1"
_MASK = (1 << 64) - 1


def _mix(seed: int, n: int) -> int:
    """As in writer.c."""
    z = (seed + n * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _sector(seed: int, n: int, device: int, where: int) -> bytes:
    return struct.pack("<8s4Q", MAGIC, seed, n, device, where) + struct.pack("<Q", n) * (SECTOR // 8 - 5)


def last_write(disks: Sequence[bytes]) -> int:
    """The highest number of all sectors that are stamped."""
    highest = 0
    for disk in disks:
        for start in range(0, len(disk), SECTOR):
            if disk.startswith(MAGIC, start):
                highest = max(highest, struct.unpack_from("<Q", disk, start + 16)[0])
    return highest


def expected(seed: int, sizes: Sequence[int], writes: int) -> list[bytearray]:
    """The disks, of these sizes in bytes and all zero at first, after so many writes."""
    disks = [bytearray(size) for size in sizes]
    for n in range(1, writes + 1):
        r = _mix(seed, n)
        device = r % len(disks)
        where = (r // len(disks)) % (sizes[device] // SECTOR)
        disks[device][where * SECTOR : (where + 1) * SECTOR] = _sector(seed, n, device, where)
    return disks


def prove(seed: int, disks: Sequence[bytes]) -> int:
    """Return S.  Raises AssertionError, naming the first wrong sector, where the disks do not hold the writes 1..S."""
    writes = last_write(disks)
    for device, (found, wanted) in enumerate(zip(disks, expected(seed, [len(d) for d in disks], writes), strict=True)):
        if found != wanted:
            where = next(s for s in range(0, len(found), SECTOR) if found[s : s + SECTOR] != wanted[s : s + SECTOR])
            raise AssertionError(
                f"not the writes 1..{writes}: disk {device}, sector {where // SECTOR} "
                f"has {found[where : where + 40]!r}, not {bytes(wanted[where : where + 40])!r}"
            )
    return writes
