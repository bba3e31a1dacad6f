"""Which parts of a disk may differ between two states of its qcow2 image: by the tables of both, and by which parts of
the file itself may differ.

A cluster of the disk is as it was if both states have it at the same place, and that part of the file is as it was; or
if it is zeros in both; or if both leave it to the same images below.  QEMU: docs/interop/qcow2.txt.  Internal snapshots
make no difference: what the active tables tell is all that the guest sees.  The functions read by means of a function
that is given to them.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .extents import HOLE, ZERO, Extent

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">Q")  # incompatible ones, of version 3
_DIRTY, _COMPRESSION_TYPE = 1 << 0, 1 << 3  # of reference counts, and of compressed clusters, which are refused
_NAMES = {1 << 1: "is marked as corrupt", 1 << 2: "has its data in another file", 1 << 4: "has extended L2 entries"}
_COPIED, _COMPRESSED, _IS_ZERO = 1 << 63, 1 << 62, 1
_OFFSET = (1 << 56) - (1 << 9)
_MOST_L1_BYTES = 32 << 20  # as QEMU

Read = Callable[[int, int], bytes]  # of offset and length; fewer bytes where the file ends


class CannotCompareError(ValueError):
    """Why the images cannot be compared, in words that follow 'its image'."""


@dataclass(frozen=True)
class State:
    """An image at a moment."""

    read: Read
    cluster_bits: int
    size_bytes: int  # of the disk
    l1: array[int]  # where the L2 tables lie

    @classmethod
    def of(cls, read: Read) -> State:
        """Raises CannotCompareError, and what `read` raises."""
        head = read(0, _HEADER.size + _FEATURES.size).ljust(_HEADER.size + _FEATURES.size, b"\0")
        magic, version, _, _, bits, size, encryption, entries, l1_offset, *_ = _HEADER.unpack_from(head)
        if magic != MAGIC or version not in (2, 3) or not 9 <= bits <= 21:
            raise CannotCompareError("is no qcow2 image that can be understood")
        if encryption:
            raise CannotCompareError("is encrypted")
        features = _FEATURES.unpack_from(head, _HEADER.size)[0] if version == 3 else 0
        features &= ~(_DIRTY | _COMPRESSION_TYPE)
        if features:
            known = [what for bit, what in _NAMES.items() if features & bit]
            raise CannotCompareError(known[0] if known else "has features that are not known")
        covered = -(-size // (1 << (2 * bits - 3)))
        if entries < covered or entries * 8 > _MOST_L1_BYTES:
            raise CannotCompareError("has an L1 table of the wrong size")
        return cls(read, bits, size, _table(read, l1_offset, covered))

    def l2(self, number: int) -> int:
        """Where that L2 table lies; 0 if there is none.  Raises CannotCompareError."""
        entry = self.l1[number] & ~_COPIED if number < len(self.l1) else 0
        if entry & ~_OFFSET or entry % (1 << self.cluster_bits):
            raise CannotCompareError("has a broken L1 table")
        return entry

    def table(self, offset: int) -> array[int]:
        """The L2 table there."""
        entries = 1 << (self.cluster_bits - 3)
        return _table(self.read, offset, entries) if offset else array("Q", bytes(8 * entries))


def _table(read: Read, offset: int, entries: int) -> array[int]:
    content = read(offset, 8 * entries)
    if len(content) < 8 * entries:
        raise CannotCompareError("ends within a table")
    return array("Q", struct.unpack(f">{entries}Q", content))


class _File:
    """Which parts of the file may differ."""

    def __init__(self, differing: Sequence[Extent], size_bytes: int, bits: int) -> None:
        self._extents = differing
        self._starts = [each.start for each in differing]
        self._bits = bits
        self.size_bytes = size_bytes
        self.differs = bytearray((size_bytes >> bits) + 1)  # by cluster; what lies beyond the end is not looked at
        self.differs[size_bytes >> bits] = 1  # the file's end lies in it
        for each in differing:
            first, last = each.start >> bits, min(each.end - 1, size_bytes) >> bits
            if first <= last:
                self.differs[first : last + 1] = b"\1" * (last + 1 - first)

    def is_same(self, offset: int) -> bool:
        """Whether the cluster there is as it was."""
        number = offset >> self._bits
        return number < len(self.differs) and not self.differs[number]

    def within(self, offset: int) -> Iterator[Extent]:
        """What may differ in the cluster there, told from its beginning on."""
        end = offset + (1 << self._bits)
        for each in self._extents[max(0, bisect_right(self._starts, offset) - 1) :]:
            if each.start >= end:
                break
            start, stop = max(each.start, offset), min(each.end, end)
            if start < stop:
                yield Extent(start - offset, stop - start, each.flags)
        if end > self.size_bytes:
            start = max(self.size_bytes, offset)
            yield Extent(start - offset, end - start, 0)


def differing(older: State, newer: State, file: Sequence[Extent], file_bytes: int, *, is_alone: bool) -> list[Extent]:
    """The parts of the disk that may differ, in order, none twice, with the flags of what they are in the newer state,
    up to the end of the smaller one.

    `file` is what differs of the files, in order, of which the newer one has `file_bytes`; `is_alone` tells that the
    image rests on no other; if it does, on the same one in both states.  Raises CannotCompareError, and what the
    states' functions raise.
    """
    if older.cluster_bits != newer.cluster_bits:
        raise CannotCompareError("has clusters of another size than before")
    comparison = _Comparison(older, newer, _File(file, file_bytes, newer.cluster_bits), is_alone)
    return list(comparison.differing())


@dataclass(frozen=True)
class _Comparison:
    older: State
    newer: State
    file: _File
    is_alone: bool

    def differing(self) -> Iterator[Extent]:
        bits = self.newer.cluster_bits
        size_bytes = min(self.older.size_bytes, self.newer.size_bytes)
        covered_bits = 2 * bits - 3  # of the disk by an L2 table
        for number in range(-(-size_bytes // (1 << covered_bits))):
            before, now = self.older.l2(number), self.newer.l2(number)
            if not before and not now:
                continue
            table = self.newer.table(now)
            is_same = before == now and self.file.is_same(now)
            old = table if is_same else self.older.table(before)
            for index, extents in self._of_tables(old, table, is_same=is_same):
                start = (number << covered_bits) + (index << bits)
                yield from (Extent(start + each.start, each.length, each.flags) for each in extents)

    def _of_tables(self, old: array[int], new: array[int], *, is_same: bool) -> Iterator[tuple[int, Sequence[Extent]]]:
        """By the number of the cluster, what may differ in it."""
        if is_same:
            changed = self._looked_at(new)
        else:
            changed = [index for index, pair in enumerate(zip(old, new, strict=True)) if any(pair)]
        for index in changed:
            extents = self._of_cluster(old[index], new[index])
            if extents:
                yield index, extents

    def _looked_at(self, table: array[int]) -> list[int]:
        """The numbers of those entries that cannot be passed over, of a table that is as it was."""
        differs, bits = self.file.differs, self.newer.cluster_bits
        try:
            return [
                index
                for index, entry in enumerate(table)
                if entry and (entry & _COMPRESSED or differs[(entry & _OFFSET) >> bits])
            ]
        except IndexError:  # one lies beyond the file's end
            return list(range(len(table)))

    def _of_cluster(self, old: int, new: int) -> Sequence[Extent]:
        before, now = self._meaning(old), self._meaning(new)
        whole = 1 << self.newer.cluster_bits
        if before != now:
            return [Extent(0, whole, HOLE | ZERO if now == _ZEROS else 0)]
        return [] if now in (_ZEROS, _BELOW) else list(self.file.within(now))

    def _meaning(self, entry: int) -> int:
        """Where the cluster's data lies; _ZEROS, or _BELOW.  Raises CannotCompareError."""
        if entry & _COMPRESSED:
            raise CannotCompareError("has compressed clusters")
        offset = entry & _OFFSET
        if entry & ~(_OFFSET | _COPIED | _IS_ZERO) or offset % (1 << self.newer.cluster_bits):
            raise CannotCompareError("has a broken L2 table")
        if entry & _IS_ZERO:
            return _ZEROS
        return offset or (_ZEROS if self.is_alone else _BELOW)


_ZEROS, _BELOW = -1, -2
