"""The seam between sources and publishers: one disk of a snapshot."""

from __future__ import annotations

from typing import Protocol

from .extents import ExtentMap


class Image(Protocol):
    """One disk of a snapshot, readable at any offset, the same bytes each time."""

    @property
    def name(self) -> str:
        """The disk's target name in the VM, such as 'vda'."""

    @property
    def size_bytes(self) -> int:
        """The disk's virtual size."""

    async def extents(self) -> ExtentMap:
        """All extents of the disk.  They are fetched once; raises OSError (EIO) where they cannot be had."""

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """The bytes [offset, offset + length), all of them; the range lies within the disk.

        Raises OSError (EIO) where they cannot be had, at a deadline at the latest: never other bytes in their place.
        """
