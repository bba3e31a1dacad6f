"""A disk's dirty extents as a file of the mount."""

from __future__ import annotations

import trio

from ...core.changes import ChangeMap
from ...core.extents import ExtentMap, json_map, json_map_size
from ...core.image import Image
from ..tree import Sizes, all_data

GLANCE_S = 0.5  # how long they may take before the file's attributes are told without them


class DirtyText:
    """The extents as JSON text in the form of MapText, made where it is read."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._looking = trio.Lock()
        self._changes = ChangeMap()

    async def sizes(self) -> Sizes:
        """0 until they are known; who opens the file waits for that."""
        try:
            with trio.move_on_after(GLANCE_S):
                size = await self.size_bytes()
                return Sizes(size, size)
        except OSError:
            pass
        return Sizes(0, 0, settled=False)

    async def size_bytes(self) -> int:
        return json_map_size(await self._found())

    async def extents(self) -> ExtentMap:
        return all_data(await self.size_bytes())

    async def direct(self) -> None:
        return None

    async def placement(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        return json_map(await self._found(), offset, length)

    async def _found(self) -> ChangeMap:
        """All of them; who comes next goes on where this was cancelled.  Raises OSError."""
        if self._changes.end < self._image.size_bytes:
            async with self._looking:
                while self._changes.end < self._image.size_bytes:
                    self._changes.add(await self._image.dirty(self._changes.end))
        return self._changes
