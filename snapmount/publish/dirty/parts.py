"""The parts of a stream of dirty extents, made from a snapshot's images a few ahead of who sends them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from ...core import dirtystream
from ...core.changes import Joined
from ...core.extents import Extent
from ...core.image import Image

AHEAD = 4  # frames whose data is in memory or being read, as many as an image has connections

Data = bytes | bytearray | memoryview


class _Reading:
    """Bytes of a disk that are being read."""

    def __init__(self, nursery: trio.Nursery, image: Image, extent: Extent) -> None:
        self._done = trio.Event()
        self._data: Data = b""
        self._error: OSError | None = None
        nursery.start_soon(self._run, image, extent)

    async def _run(self, image: Image, extent: Extent) -> None:
        try:
            self._data = await image.read(extent.start, extent.length)
        except OSError as error:
            self._error = error
        self._done.set()

    async def result(self) -> Data:
        """Raises OSError."""
        await self._done.wait()
        if self._error:
            raise self._error
        return self._data


@dataclass(frozen=True)
class Part:
    """Lines of the stream, and what follows them."""

    lines: bytes
    reading: _Reading | None = None
    error: OSError | None = None  # in place of both: the stream ends here

    async def data(self) -> Data:
        """The bytes of the disk that follow.  Raises OSError if they cannot be had."""
        if self.error:
            raise self.error
        return await self.reading.result() if self.reading else b""


class Parts:
    """The parts, from the first extent to the last line; they are made, and bytes read, in the nursery's tasks."""

    def __init__(self, nursery: trio.Nursery, images: Sequence[Image], *, with_data: bool) -> None:
        self._nursery = nursery
        self._with_data = with_data
        # beside those in the channel one is being sent, and one waits to be put there
        self._made, self._to_send = trio.open_memory_channel[Part](AHEAD - 2)
        nursery.start_soon(self._make, images)

    async def next(self) -> Part | None:
        """The next one; None after the last."""
        try:
            return await self._to_send.receive()
        except trio.EndOfChannel:
            return None

    async def _make(self, images: Sequence[Image]) -> None:
        sums = [0, 0]  # of data, and of zeros
        async with self._made:
            try:
                for image in images:
                    await self._make_of(image, sums)
            except OSError as error:
                await self._made.send(Part(b"", error=error))
            else:
                await self._made.send(Part(dirtystream.end(*sums)))

    async def _make_of(self, image: Image, sums: list[int]) -> None:
        joined, at = Joined(), 0
        while at < image.size_bytes:
            changes = await image.dirty(at)
            at = changes.end
            for extent in changes.extents:
                sums[extent.is_zero] += extent.length
            if self._with_data:  # in frames anyway: none has to wait for what the next look tells
                await self._put_frames(image, changes.extents)
            else:
                await self._put_lines(image, joined.add(changes))
        await self._put_lines(image, joined.rest())

    async def _put_lines(self, image: Image, extents: Sequence[Extent]) -> None:
        if extents:
            await self._made.send(Part(b"".join(dirtystream.extent(image.name, extent) for extent in extents)))

    async def _put_frames(self, image: Image, extents: Iterable[Extent]) -> None:
        for extent in extents:
            for frame in dirtystream.frames(extent):
                reading = None if frame.is_zero else _Reading(self._nursery, image, frame)
                await self._made.send(Part(dirtystream.extent(image.name, frame), reading))
