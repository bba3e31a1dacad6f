"""The extents of a disk: which parts hold data and which are known to read as zeros.

Kept as two flat arrays, nine bytes an extent, so that a disk with a million extents costs a few megabytes.
"""

from __future__ import annotations

import heapq
import itertools
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

# The flags of NBD's metadata context "base:allocation" (NBD protocol, "Metadata querying").
HOLE = 1  # not allocated
ZERO = 2  # reads as zeros


@dataclass(frozen=True)
class Extent:
    """A part of a disk that is of one kind."""

    start: int
    length: int
    flags: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def is_zero(self) -> bool:
        """Whether it is known to read as zeros."""
        return bool(self.flags & ZERO)


class ExtentMap:
    """The extents from the disk's start on, without gaps, up to `end`: all that is known so far.

    It grows at its end only.  Neighbours of one kind are one extent.
    """

    def __init__(self) -> None:
        self.end = 0
        self.data_bytes = 0  # how much of it is not known to be zero
        self._starts = array("Q")
        self._flags = bytearray()

    def __len__(self) -> int:
        return len(self._starts)

    def arrays(self) -> tuple[array[int], bytearray]:
        """Where each extent starts, in bytes, and its flags; a map that others look into so must grow no more."""
        return self._starts, self._flags

    def append(self, length: int, flags: int) -> None:
        """Add what follows."""
        if not length:
            return
        flags &= HOLE | ZERO
        if not self._flags or self._flags[-1] != flags:
            self._starts.append(self.end)
            self._flags.append(flags)
        self.end += length
        if not flags & ZERO:
            self.data_bytes += length

    def append_status(self, entries: Sequence[int]) -> None:
        """Add what an NBD block status reply tells: length, flags, length, flags, ..."""
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            self.append(length, flags)

    def __getitem__(self, number: int) -> Extent:
        """The extent with that number.  Raises IndexError."""
        start = self._starts[number]
        return Extent(start, self._end_of(number) - start, self._flags[number])

    def __iter__(self) -> Iterator[Extent]:
        return self.between(0, self.end)

    def between(self, start: int, stop: int) -> Iterator[Extent]:
        """The extents of [start, stop), the first and the last cut to it.  The range must be known."""
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            end = min(stop, self._end_of(number))
            yield Extent(start, end - start, self._flags[number])
            start = end
            number += 1

    def find(self, offset: int) -> Extent:
        """The rest of the extent that `offset` lies in; it must be known."""
        number = bisect_right(self._starts, offset) - 1
        return Extent(offset, self._end_of(number) - offset, self._flags[number])

    def seek(self, offset: int, zero: bool) -> int | None:
        """The first place from `offset` on that is known to be zero, or that is not; None if there is none."""
        for extent in self.between(offset, self.end):
            if extent.is_zero == zero:
                return extent.start
        return None

    def _end_of(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else self.end


def agreed(first: ExtentMap, second: ExtentMap, end: int) -> ExtentMap:
    """What two maps of one disk agree upon up to `end`: a part is zero, or a hole, only where both say so."""
    both = ExtentMap()
    for extent in first.between(0, end):
        for part in second.between(extent.start, extent.end):
            both.append(part.length, extent.flags & part.flags)
    return both


def aligned(extents: ExtentMap, unit_bytes: int) -> ExtentMap:
    """The same disk with holes that begin and end at multiples of the unit, or at the disk's end: what of a hole lies
    beside them counts as data.
    """
    starts, _flags = extents.arrays()
    if not any(start % unit_bytes for start in starts):
        return extents
    rounded = ExtentMap()
    for is_zero, parts in itertools.groupby(extents, lambda extent: extent.is_zero):
        first, *others = parts
        start, end = first.start, (others[-1] if others else first).end
        start = -(-start // unit_bytes) * unit_bytes
        end = end if end == extents.end else end // unit_bytes * unit_bytes
        if is_zero and start < end:
            if start > rounded.end:
                rounded.append(start - rounded.end, 0)
            rounded.append(end - start, HOLE | ZERO)
    if extents.end > rounded.end:
        rounded.append(extents.end - rounded.end, 0)
    return rounded


def coarse(extents: ExtentMap, most: int) -> ExtentMap:
    """The same disk with `most` extents at most: all but its largest holes count as data."""
    if len(extents) <= most:
        return extents
    starts, flags = extents.arrays()
    ends = itertools.chain(starts[1:], [extents.end])
    holes = ((end - start, start) for start, end, flag in zip(starts, ends, flags, strict=True) if flag & ZERO)
    simplified = ExtentMap()
    for length, start in sorted(heapq.nlargest((most - 1) // 2, holes), key=lambda hole: hole[1]):
        if start > simplified.end:
            simplified.append(start - simplified.end, 0)
        simplified.append(length, HOLE | ZERO)
    if extents.end > simplified.end:
        simplified.append(extents.end - simplified.end, 0)
    return simplified


def seek_data(extents: ExtentMap, offset: int) -> int | None:
    """lseek(2) with SEEK_DATA on a disk whose extents are all known: None stands for ENXIO."""
    return extents.seek(offset, zero=False) if 0 <= offset < extents.end else None


def seek_hole(extents: ExtentMap, offset: int) -> int | None:
    """lseek(2) with SEEK_HOLE: there is a hole at the end of every file.  None stands for ENXIO."""
    if not 0 <= offset < extents.end:
        return None
    found = extents.seek(offset, zero=True)
    return extents.end if found is None else found


# A line of the map has one width, whatever it says, so that any part of the text can be made without the rest of it.
_LINE = '%s{"start": %20d, "length": %20d, "depth": 0, "present": true, %s}%s\n'
_KINDS = [  # by flags
    f'"zero": {json.dumps(bool(flags & ZERO)):>5}, "data": {json.dumps(not flags & HOLE):>5}' for flags in range(4)
]
_LINE_BYTES = len(_LINE % ("[", 0, 0, _KINDS[0], "]"))
_EMPTY_MAP = b"[]\n"


class Numbered(Protocol):
    """Extents in their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Extent: ...


def json_map_size(extents: Numbered) -> int:
    """The size of json_map()'s text in bytes."""
    return len(extents) * _LINE_BYTES or len(_EMPTY_MAP)


def json_map(extents: Numbered, offset: int, length: int) -> bytes:
    """The bytes [offset, offset + length) of the extents as text: an extent a line.

    The text is JSON in the form of `qemu-img map --output=json` (qemu-img(1), "map").  As for any NBD export the depth
    is 0, and no "offset" tells where in the origin the data lies.
    """
    if not len(extents):
        return _EMPTY_MAP[offset : offset + length]
    first = offset // _LINE_BYTES
    last = min(len(extents), -(-(offset + length) // _LINE_BYTES))
    skipped = offset - first * _LINE_BYTES
    return "".join(_json_lines(extents, first, last)).encode()[skipped : skipped + length]


def _json_lines(extents: Numbered, first: int, last: int) -> Iterator[str]:
    final = len(extents) - 1
    for number in range(first, last):
        extent, is_last = extents[number], number == final
        kind = _KINDS[extent.flags]
        yield _LINE % (" " if number else "[", extent.start, extent.length, kind, "]" if is_last else ",")
