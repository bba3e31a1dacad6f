"""The dirty extents of a disk: what has changed in it since the moment that a snapshot is compared with.

They are found from the disk's start on, a part at a time, and each is data or known to read as zeros.  What lies
between them is clean.
"""

from __future__ import annotations

import itertools
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
