"""What has changed in a disk, by the dirty bitmap that QEMU exports beside it (QEMU: docs/interop/nbd.txt, "qemu:").

The bitmap lies in QEMU's memory, and is asked first.  What is allocated may have to be read from an image's tables, and
is asked for only where something has changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from ..core.changes import Changes, in_ranges
from ..core.extents import Extent, ExtentMap
from ..core.survey import MOST_BYTES, Survey
from ..errors import UnreachableError

DIRTY = 1  # the flag of a dirty extent
ENOUGH_RANGES = 4096  # for one look
NEAR_BYTES = 16 << 20  # what lies as near as that is asked for at once
# Questions that are handed over together, as waiting for each by itself takes most of the time: a disk of 800 GiB needs
# 400 of them about its bitmap, and each change that lies far from others one about what it is.
AT_ONCE = 16

Question = tuple[int, int]  # offset and length
Told = Sequence[int]  # length, flags, length, flags, ...
Statuses = Callable[[Sequence[Question]], Awaitable[Sequence[Told]]]
StatusesTwice = Callable[[Sequence[Question]], Awaitable[Sequence[tuple[Told, Told]]]]
Range = tuple[int, int]  # start and end in bytes


@dataclass(frozen=True)
class Bitmap:
    """The bitmap of an export."""

    context: str  # NBD's metadata context
    known_bytes: int  # how far it tells; all beyond has changed


async def dirty_ranges(statuses: Statuses, bitmap: Bitmap, start: int, size_bytes: int) -> tuple[int, list[Range]]:
    """The dirty parts from `start` on, and how far the disk has been looked at.  Raises UnreachableError for an answer
    that makes no sense, and whatever `statuses` raises.
    """
    place, found, at_once = start, list[Range](), 1
    known = min(bitmap.known_bytes, size_bytes)
    while place < known and len(found) < ENOUGH_RANGES:
        questions = [*itertools.islice(_questions(place, known), at_once)]
        for question, told in zip(questions, await statuses(questions), strict=True):
            if place < question[0]:
                break  # the answer before this one has told of a part of what was asked
            place = _gather(found, question, told)
        at_once = min(2 * at_once, AT_ONCE)
    if known <= place < size_bytes and len(found) < ENOUGH_RANGES:
        _add(found, (place, size_bytes))
        place = size_bytes
    return place, found


def _questions(start: int, end: int) -> Iterator[Question]:
    return ((place, min(MOST_BYTES, end - place)) for place in range(start, end, MOST_BYTES))


def _gather(found: list[Range], question: Question, told: Told) -> int:
    """Add what an answer tells to be dirty; if it ends.  Raises UnreachableError for one that tells nothing."""
    place, length = question
    clipped = _clipped(told, length)
    for extent, flags in zip(clipped[::2], clipped[1::2], strict=True):
        if flags & DIRTY:
            _add(found, (place, place + extent))
        place += extent
    if place == question[0]:
        raise UnreachableError("QEMU tells nothing of a part of the dirty bitmap")
    return place


def _add(ranges: list[Range], more: Range) -> None:
    if more[0] == more[1]:
        return
    if ranges and ranges[-1][1] == more[0]:
        ranges[-1] = (ranges[-1][0], more[1])
    else:
        ranges.append(more)


async def kinds(statuses_twice: StatusesTwice, end: int, ranges: Sequence[Range]) -> Changes:
    """What of the dirty parts is data, and what is zero.  Raises as dirty_ranges() does."""
    found, parts = list[Extent](), map(_Part, _near(ranges))
    while some := [*itertools.islice(parts, AT_ONCE)]:
        while asked := [(part, question) for part in some if (question := part.question())]:
            answers = await statuses_twice([question for _, question in asked])
            for (part, question), told in zip(asked, answers, strict=True):
                part.learn(question, told)
        for part in some:
            found += part.extents()
    return Changes(end, tuple(found))


class _Part:
    """A part of the disk in which dirty ranges lie near each other."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = ranges
        self._start = ranges[0][0]
        self._survey = Survey(ranges[-1][1] - self._start)

    def question(self) -> Question | None:
        """What to ask next; None once all is known."""
        question = self._survey.question()
        return question and (self._start + question[0], question[1])

    def learn(self, question: Question, told: tuple[Told, Told]) -> None:
        first, second = (_clipped(each, question[1]) for each in told)
        self._survey.learn(first, second)

    def extents(self) -> Iterator[Extent]:
        """Those of the ranges."""
        return in_ranges(self._ranges, _moved(self._survey.extents, self._start))


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


def _clipped(told: Told, length: int) -> list[int]:
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
