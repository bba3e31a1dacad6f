"""The proof of a view: it holds exactly the writes 1..S of the guest's sequence, for some S, across all disks.

The guest (writer.c) makes write N only after write N-1 has completed, at a place that follows from the seed and N.  So
the state of all disks after S writes can be computed, and must equal the view byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Piece:
    """What a read of a disk has returned."""

    device: int  # the disk's place in the writer's list
    offset: int  # in bytes, at a sector
    data: bytes


class Replay:
    """The disks, all zero at first, as the guest's writes leave them."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        self.writes = 0  # made so far
        self._seed = seed
        self._disks = [bytearray(size) for size in sizes]

    def prove(self, pieces: Sequence[Piece]) -> int:
        """Return S: all pieces are of the moment when exactly the writes 1..S had been made.

        Pieces that do not hold the whole disks leave several moments; S is the first of them that is no earlier than
        that of the proof before: proofs must be asked for in the order of their moments.  Raises AssertionError, naming
        the first wrong sector.
        """
        self.go_on(max((_last_write(piece.data) for piece in pieces), default=0))
        for piece in pieces:
            wanted = self._disks[piece.device][piece.offset : piece.offset + len(piece.data)]
            if piece.data != wanted:
                self._accuse(piece, wanted)
        return self.writes

    def content(self, device: int) -> bytes:
        """What the disk holds."""
        return bytes(self._disks[device])

    def go_on(self, writes: int) -> None:
        """Make the writes up to that number."""
        for n in range(self.writes + 1, writes + 1):
            r = _mix(self._seed, n)
            device = r % len(self._disks)
            disk = self._disks[device]
            where = (r // len(self._disks)) % (len(disk) // SECTOR)
            disk[where * SECTOR : (where + 1) * SECTOR] = _sector(self._seed, n, device, where)
            self.writes = n

    def _accuse(self, piece: Piece, wanted: bytes | bytearray) -> None:
        found = piece.data
        if len(found) > len(wanted):
            raise AssertionError(f"disk {piece.device} ends at {piece.offset + len(wanted)}, and more was read")
        where = next(s for s in range(0, len(found), SECTOR) if found[s : s + SECTOR] != wanted[s : s + SECTOR])
        raise AssertionError(
            f"not the writes 1..{self.writes}: disk {piece.device}, sector {(piece.offset + where) // SECTOR} "
            f"has {found[where : where + 40]!r}, not {bytes(wanted[where : where + 40])!r}"
        )


_KEPT: dict[tuple[int, tuple[int, ...]], Replay] = {}


def prove(seed: int, disks: Sequence[bytes]) -> int:
    """Return S, where the disks hold exactly the writes 1..S; as Replay.prove().

    What the proof furthest on has replayed is kept, for the next one of the same guest.
    """
    key = seed, tuple(map(len, disks))
    pieces = [Piece(device, 0, disk) for device, disk in enumerate(disks)]
    kept = _KEPT.get(key)
    if kept and kept.writes <= max(map(_last_write, disks)):
        return kept.prove(pieces)
    replay = Replay(*key)
    writes = replay.prove(pieces)
    if not kept or kept.writes < writes:
        _KEPT[key] = replay
    return writes


def _last_write(data: bytes) -> int:
    """The highest number of all sectors that are stamped."""
    stamped = (start for start in range(0, len(data), SECTOR) if data.startswith(MAGIC, start))
    return max((int(struct.unpack_from("<Q", data, start + 16)[0]) for start in stamped), default=0)
