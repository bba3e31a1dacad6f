"""The dirty extents of a disk: what has changed in it since the moment that a snapshot is compared with.

They are found from the disk's start on, a part at a time, and each is data or known to read as zeros.  What lies
between them is clean.
"""

from __future__ import annotations

import itertools
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
    runs = itertools.groupby(extents.between(start, extents.end), lambda extent: extent.is_zero)
    found: list[Extent] = []
    end = start
    for is_zero, parts in itertools.islice(runs, LOOK_EXTENTS):
        begin = end
        for part in parts:
            end = part.end
        found.append(Extent(begin, end - begin, HOLE | ZERO if is_zero else 0))
    return Changes(end, tuple(found))
