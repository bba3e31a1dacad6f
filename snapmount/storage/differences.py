"""What differs between two files that share blocks: told by the blocks' addresses, not by reading them.

Where both have the same block at the same place they have the same bytes, for as long as both are there: a block that
is shared is never written to.  All else may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..core.extents import HOLE, ZERO, Extent
from ..host import fiemap
from ..host.fiemap import Mapped


class _Part(NamedTuple):
    end: int
    shift: int | None  # from a byte's offset to its address; None for zeros
    is_vague: bool  # its addresses tell nothing


def of_files(older: int, newer: int) -> list[Extent]:
    """What may differ, by two descriptors of files of one file system; see between().  Blocks.

    The file system must be XFS, on one device, or btrfs: on others an address may name blocks of several devices.
    Raises OSError.
    """
    sizes = os.fstat(older).st_size, os.fstat(newer).st_size
    return between(fiemap.extents(older), sizes[0], fiemap.extents(newer), sizes[1])


def between(older: Iterable[Mapped], older_bytes: int, newer: Iterable[Mapped], newer_bytes: int) -> list[Extent]:
    """The parts of the newer file that may differ from the older one, in order, with the flags of what they are in the
    newer one: ZERO and HOLE where it has no data.  What lies beyond the older one's end was zero.
    """
    found: list[Extent] = []
    befores, afters = _parts(older, older_bytes, newer_bytes), _parts(newer, newer_bytes, newer_bytes)
    before = after = _Part(0, None, False)
    start = 0
    while start < newer_bytes:
        if before.end == start:
            before = next(befores)
        if after.end == start:
            after = next(afters)
        end = min(before.end, after.end)
        if before.shift != after.shift or before.is_vague or after.is_vague:
            _append(found, start, end, HOLE | ZERO if after.shift is None else 0)
        start = end
    return found


def _append(found: list[Extent], start: int, end: int, flags: int) -> None:
    if found and (found[-1].end, found[-1].flags) == (start, flags):
        start = found.pop().start
    found.append(Extent(start, end - start, flags))


def _parts(mapped: Iterable[Mapped], size_bytes: int, up_to: int) -> Iterator[_Part]:
    """The file from its start on, without gaps, and zeros from its end up to there."""
    end, stop = 0, min(size_bytes, up_to)
    for each in mapped:
        start = min(each.start, stop)
        if start > end:
            yield _Part(start, None, False)
        end = min(each.start + each.length, stop)
        if end > start:
            yield _part(end, each)
        if end == stop:
            break
    if up_to > end:
        yield _Part(up_to, None, False)


def _part(end: int, mapped: Mapped) -> _Part:
    is_vague = bool(mapped.flags & fiemap.VAGUE)
    is_zero = not is_vague and bool(mapped.flags & fiemap.UNWRITTEN)
    return _Part(end, None if is_zero else mapped.address - mapped.start, is_vague)
