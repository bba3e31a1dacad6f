"""What has changed in a disk, by the dirty bitmap that QEMU exports beside it (QEMU: docs/interop/nbd.txt, "qemu:").

The bitmap lies in QEMU's memory, and is asked first.  What is allocated may have to be read from an image's tables, and
is asked for only where something has changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from ..core.changes import Changes, in_ranges
from ..core.extents import Extent, ExtentMap
from ..core.survey import MOST_BYTES, Survey
from ..errors import UnreachableError

DIRTY = 1  # the flag of a dirty extent
ENOUGH_RANGES = 4096  # for one look
NEAR_BYTES = 16 << 20  # what lies as near as that is asked for at once

Status = Callable[[int, int], Awaitable[Sequence[int]]]  # of offset and length: length, flags, length, flags, ...
StatusTwice = Callable[[int, int], Awaitable[tuple[Sequence[int], Sequence[int]]]]
Range = tuple[int, int]  # start and end in bytes


@dataclass(frozen=True)
class Bitmap:
    """The bitmap of an export."""

    context: str  # NBD's metadata context
    known_bytes: int  # how far it tells; all beyond has changed


async def dirty_ranges(status: Status, bitmap: Bitmap, start: int, size_bytes: int) -> tuple[int, list[Range]]:
    """The dirty parts from `start` on, and how far the disk has been looked at.  Raises UnreachableError for an answer
    that makes no sense, and whatever `status` raises.
    """
    place, found = start, list[Range]()
    known = min(bitmap.known_bytes, size_bytes)
    while place < known and len(found) < ENOUGH_RANGES:
        asked = min(MOST_BYTES, known - place)
        told = await status(place, asked)
        begin = place
        for length, flags in zip(told[::2], told[1::2], strict=True):
            end = min(place + length, known)
            if flags & DIRTY:
                _add(found, (place, end))
            place = end
        if place <= begin:
            raise UnreachableError("QEMU tells nothing of a part of the dirty bitmap")
    if known <= place < size_bytes and len(found) < ENOUGH_RANGES:
        _add(found, (place, size_bytes))
        place = size_bytes
    return place, found


def _add(ranges: list[Range], more: Range) -> None:
    if more[0] == more[1]:
        return
    if ranges and ranges[-1][1] == more[0]:
        ranges[-1] = (ranges[-1][0], more[1])
    else:
        ranges.append(more)


async def kinds(status_twice: StatusTwice, end: int, ranges: Sequence[Range]) -> Changes:
    """What of the dirty parts is data, and what is zero.  Raises as dirty_ranges() does."""
    found = list[Extent]()
    for group in _near(ranges):
        first, last = group[0][0], group[-1][1]
        survey = Survey(last - first)
        while question := survey.question():
            offset, length = question
            survey.learn(*[_clipped(told, length) for told in await status_twice(first + offset, length)])
        found += in_ranges(group, _moved(survey.extents, first))
    return Changes(end, tuple(found))


def _near(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """The same in groups, of which each is asked for at once."""
    group = list[Range]()
    for each in ranges:
        if group and each[0] - group[-1][1] > NEAR_BYTES:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _clipped(told: Sequence[int], length: int) -> list[int]:
    """An answer without what lies beyond the question, of which a server may tell too."""
    clipped, left = list[int](), length
    for extent, flags in zip(told[::2], told[1::2], strict=True):
        if left:
            clipped += [min(extent, left), flags]
            left -= clipped[-2]
    return clipped


def _moved(extents: ExtentMap, start: int) -> ExtentMap:
    """The same extents, as those of a disk that they begin at `start` of."""
    moved = ExtentMap()
    moved.append(start, 0)
    for extent in extents:
        moved.append(extent.length, extent.flags)
    return moved
