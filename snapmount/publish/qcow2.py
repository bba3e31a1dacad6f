"""A disk of a snapshot as a thin qcow2 file, which is nowhere: its tables are made when they are read, its data is the
image's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import trio

from ..core.clusters import Clusters
from ..core.extents import ExtentMap, aligned
from ..core.image import Direct, Image
from ..core.qcow2layout import Backing, Layout, Metadata, OnDisk, Placement, file_extents
from .tree import HOLE_UNIT_BYTES, Sizes

GLANCE_S = 0.5  # how long what has changed may take before a file's attributes are told without it
SPAN_BYTES = 1 << 20  # clusters that lie within it on the disk are read at once, with what is between them


@dataclass(frozen=True)
class _LaidOut:
    """What is known once the disk's extents are."""

    layout: Layout
    disk: ExtentMap
    data_bytes: int  # how much of the disk is data in the file

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.layout.size_bytes, self.layout.metadata_bytes + self.data_bytes)


class Qcow2Image:
    """All of a disk's data, in clusters of that size; no snapshots, no backing file."""

    def __init__(self, image: Image, cluster_bytes: int) -> None:
        self._image = image
        self._cluster_bytes = cluster_bytes
        self._making = trio.Lock()
        self._laid_out: _LaidOut | None = None
        self._extents: ExtentMap | None = None

    async def sizes(self) -> Sizes:
        """0 until it is known what the file holds."""
        try:
            return (await self._lay_out()).sizes if await self._is_known_soon() else Sizes(0, 0, settled=False)
        except OSError:
            return Sizes(0, 0, settled=False)

    async def _is_known_soon(self) -> bool:
        """Whether that is so within a moment.  Raises OSError."""
        return await self._image.allocated_bytes() is not None

    async def size_bytes(self) -> int:
        return (await self._lay_out()).layout.size_bytes

    async def extents(self) -> ExtentMap:
        laid_out = await self._lay_out()
        async with self._making:
            if self._extents is None:
                self._extents = await trio.to_thread.run_sync(file_extents, laid_out.layout, laid_out.disk)
            return self._extents

    async def direct(self) -> Direct | None:
        return await self._image.direct()

    async def placement(self) -> Placement:
        return (await self._lay_out()).layout.placement

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        layout = (await self._lay_out()).layout
        parts = [*layout.parts(offset, length)]
        data = bytearray()
        for is_metadata, some in groupby(parts, lambda part: isinstance(part, Metadata)):
            if is_metadata:
                data += b"".join(part.data for part in some if isinstance(part, Metadata))
            else:
                data += await self._read_disk([part for part in some if isinstance(part, OnDisk)])
        return data

    async def _read_disk(self, parts: Sequence[OnDisk]) -> bytearray:
        data = bytearray()
        for some in _within_spans(parts):
            start, end = some[0].offset, min(some[-1].end, self._image.size_bytes)
            read = memoryview(await self._image.read(start, end - start))
            for part in some:
                data += read[part.offset - start : part.end - start]
        return data + bytes(sum(part.length for part in parts) - len(data))

    async def _lay_out(self) -> _LaidOut:
        """Raises OSError if the disk's extents cannot be had."""
        if self._laid_out is None:
            extents = await self._image.extents()
            async with self._making:
                if self._laid_out is None:  # a million extents take a second or two: reads go on meanwhile
                    self._laid_out = await trio.to_thread.run_sync(_lay_out, extents, self._cluster_bytes)
        return self._laid_out


class Qcow2Increment(Qcow2Image):
    """What has changed in a disk, in clusters of that size, over a backing file that has the rest, if one is named.

    What has changed and is zero is told as such: the file that it is restored over may have data there.
    """

    def __init__(self, image: Image, cluster_bytes: int, backing: Backing | None) -> None:
        super().__init__(image, cluster_bytes)
        self._backing = backing
        self._gathering = trio.Lock()
        self._changed = ExtentMap()  # as far as the changes are known; what has not changed counts as data
        self._clusters = Clusters(image.size_bytes, cluster_bytes)

    async def _is_known_soon(self) -> bool:
        with trio.move_on_after(GLANCE_S):
            await self._gather()
            return True
        return False

    async def _lay_out(self) -> _LaidOut:
        await self._gather()
        if self._laid_out is None:
            disk = aligned(self._changed, HOLE_UNIT_BYTES)
            layout = Layout(self._clusters, self._backing)
            self._laid_out = _LaidOut(layout, disk, len(self._clusters.data) * self._cluster_bytes)
        return self._laid_out

    async def _gather(self) -> None:
        """Find out all that has changed; who comes next goes on where this was cancelled.  Raises OSError."""
        async with self._gathering:
            while self._changed.end < self._image.size_bytes:
                look = await self._image.dirty(self._changed.end)
                for extent in look.extents:
                    self._changed.append(extent.start - self._changed.end, 0)
                    self._changed.append(extent.length, extent.flags)
                    add = self._clusters.add_zeros if extent.is_zero else self._clusters.add_data
                    add(extent.start, extent.end)
                self._changed.append(look.end - self._changed.end, 0)
            self._clusters.finish()


def _within_spans(parts: Sequence[OnDisk]) -> Iterator[list[OnDisk]]:
    some: list[OnDisk] = []
    for part in parts:
        if some and part.end - some[0].offset > SPAN_BYTES:
            yield some
            some = []
        some.append(part)
    if some:
        yield some


def _lay_out(extents: ExtentMap, cluster_bytes: int) -> _LaidOut:
    disk = aligned(extents, HOLE_UNIT_BYTES)
    return _LaidOut(Layout(Clusters.of_data(disk, cluster_bytes)), disk, disk.data_bytes)
