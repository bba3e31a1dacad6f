"""What has changed in the disks of a snapshot since a checkpoint, found out once, when it is taken, and kept in a file
of its directory: so that it is the same after a crash, and needs the checkpoint no more.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.changes import LOOK_EXTENTS, Changes
from ...core.extents import HOLE, ZERO, Extent, ExtentMap
from ...core.image import Direct, OpenImage
from ...records import documents

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What has changed of a disk."""

    size_bytes: int  # how far that is known: all beyond has changed
    extents: tuple[Extent, ...]  # in order, none twice


def known(extents: Sequence[Extent], size_bytes: int) -> Known:
    """What differs, up to there: neighbours of one kind as one."""
    found: list[Extent] = []
    for each in extents:
        end, flags = min(each.end, size_bytes), HOLE | ZERO if each.is_zero else 0
        if each.start >= end:
            continue
        start = each.start
        if found and found[-1].end == start and found[-1].flags == flags:
            start = found.pop().start
        found.append(Extent(start, end - start, flags))
    return Known(size_bytes, tuple(found))


def write(directory: str, disk: str, found: Known) -> None:
    """Keep it, on the disk.  Blocks.  Raises OSError."""
    extents = [(each.start, each.length, each.is_zero) for each in found.extents]
    document = {"size_bytes": found.size_bytes, "extents": extents}
    documents.write_bytes(_path(directory, disk), json.dumps(document).encode(), lasts=True)


def read(directory: str, disk: str) -> Known | None:
    """What has been kept; None if nothing has, or it cannot be read: then all counts as changed.  Blocks."""
    try:
        document = json.loads(_path(directory, disk).read_bytes())
        extents = [Extent(start, length, HOLE | ZERO if zero else 0) for start, length, zero in document["extents"]]
        return Known(int(document["size_bytes"]), tuple(extents))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: what has changed cannot be read, so all counts as changed: %s", disk, error)
        return None


def _path(directory: str, disk: str) -> Path:
    return Path(directory) / f"{disk}.changes"


class ComparedImage:
    """An image of which it is known what has changed."""

    def __init__(self, image: OpenImage, found: Known) -> None:
        self._image = image
        self._known_bytes = min(found.size_bytes, image.size_bytes)
        self._extents = known(found.extents, self._known_bytes).extents
        self._starts = [each.start for each in self._extents]

    @property
    def name(self) -> str:
        return self._image.name

    @property
    def size_bytes(self) -> int:
        return self._image.size_bytes

    async def extents(self) -> ExtentMap:
        return await self._image.extents()

    async def allocated_bytes(self) -> int | None:
        return await self._image.allocated_bytes()

    async def dirty(self, start: int) -> Changes:
        """See Image."""
        found = self._known_from(start) if start < self._known_bytes else Changes(start, ())
        if found.end < self._known_bytes or found.end == self.size_bytes:
            return found
        grown = await self._image.dirty(found.end)  # it tells of all
        return Changes(grown.end, known([*found.extents, *grown.extents], grown.end).extents)

    def _known_from(self, start: int) -> Changes:
        number = max(0, bisect_right(self._starts, start) - 1)
        found = list[Extent]()
        for each in self._extents[number : number + LOOK_EXTENTS + 2]:
            if each.end <= start:
                continue
            if len(found) == LOOK_EXTENTS:
                return Changes(found[-1].end, tuple(found))
            begin = max(each.start, start)
            found.append(Extent(begin, each.end - begin, each.flags))
        return Changes(self._known_bytes, tuple(found))

    async def direct(self) -> Direct | None:
        return await self._image.direct()

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        return await self._image.read(offset, length)

    def close(self) -> None:
        self._image.close()
