"""The dirty extents of a disk: what has changed in it since the moment that a snapshot is compared with.

They are found from the disk's start on, a part at a time, and each is data or known to read as zeros.  What lies
between them is clean.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .extents import HOLE, ZERO, Extent, ExtentMap

LOOK_EXTENTS = 4096  # that everything() tells of at once


@dataclass(frozen=True)
class Changes:
    """The dirty extents of a part of a disk, as far as one look tells; the part begins where was looked from."""

    end: int  # of the part
    extents: tuple[Extent, ...]  # in order; two that touch each other are of different kinds


def everything(extents: ExtentMap, start: int) -> Changes:
    """The next look at a disk of which nobody knows what has changed: all of its extents count as dirty.

    `start` lies within the disk.
    """
    found = tuple(itertools.islice(_runs(extents.between(start, extents.end)), LOOK_EXTENTS))
    return Changes(found[-1].end, found)


def in_ranges(ranges: Iterable[tuple[int, int]], extents: ExtentMap) -> Iterator[Extent]:
    """The extents of dirty parts of a disk, each told by its start and end, in order; they are all known."""
    for start, end in ranges:
        yield from _runs(extents.between(start, end))


def _runs(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Neighbours that are data, or that are zero, as one."""
    run: Extent | None = None
    for extent in extents:
        if run and run.is_zero == extent.is_zero:
            run = Extent(run.start, extent.end - run.start, run.flags)
            continue
        if run:
            yield run
        run = Extent(extent.start, extent.length, HOLE | ZERO if extent.is_zero else 0)
    if run:
        yield run


class Joined:
    """Dirty extents of one look after the other, in which those of one kind that touch are one."""

    def __init__(self) -> None:
        self._last: Extent | None = None  # which the next look may continue

    def add(self, changes: Changes) -> list[Extent]:
        """Take the next look; return those extents whose ends are known by now."""
        whole = []
        for extent in changes.extents:
            last = self._last
            if last and (last.end, last.is_zero) == (extent.start, extent.is_zero):
                self._last = Extent(last.start, last.length + extent.length, last.flags)
            else:
                whole += [last] if last else []
                self._last = extent
        if self._last and self._last.end < changes.end:
            whole += self.rest()
        return whole

    def rest(self) -> list[Extent]:
        """What is left when there is no further look."""
        last, self._last = self._last, None
        return [last] if last else []


class ChangeMap:
    """The dirty extents of a disk from its start on, up to `end`: all that is known so far.

    Kept as flat arrays, seventeen bytes an extent.  Those of one kind that touch are one.
    """

    def __init__(self) -> None:
        self.end = 0
        self._starts, self._lengths = array("Q"), array("Q")
        self._flags = bytearray()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Extent:
        """The dirty extent with that number.  Raises IndexError."""
        return Extent(self._starts[number], self._lengths[number], self._flags[number])

    def add(self, changes: Changes) -> None:
        """Take the next look, which begins at `end`."""
        for extent in changes.extents:
            last = self[-1] if self._starts else None
            if last and (last.end, last.is_zero) == (extent.start, extent.is_zero):
                self._lengths[-1] += extent.length
            else:
                self._starts.append(extent.start)
                self._lengths.append(extent.length)
                self._flags.append(extent.flags)
        self.end = changes.end
