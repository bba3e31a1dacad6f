"""The seam between sources and publishers: one disk of a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .changes import Changes
from .extents import ExtentMap


@dataclass(frozen=True)
class NbdSockets:
    """A way to read an image past Python: connections to its NBD export on which nothing is under way.

    They are in the transmission phase, agreed on simple replies (NBD protocol, "Transmission"), and whoever gets them
    has them for itself.  The image ends them when it is closed.
    """

    sockets: tuple[int, ...]  # file descriptors
    deadline_s: float  # for each read


@dataclass(frozen=True)
class LocalFile:
    """A way to read an image past Python: the file or block device that holds it, byte for byte.

    Whoever gets the descriptor duplicates it, since the image closes its own.  What the image has beyond the file's end
    is zero; a file that has become shorter than `size_bytes` holds no image any more.
    """

    descriptor: int
    size_bytes: int  # of the file; the image may be larger
    deadline_s: float  # for each read
    when_closed: Callable[[Callable[[], None]], None]  # takes what ends these reads, and calls it when the image closes


Direct = NbdSockets | LocalFile


class Image(Protocol):
    """One disk of a snapshot, readable at any offset, the same bytes each time."""

    @property
    def name(self) -> str:
        """The disk's target name in the VM, such as 'vda'."""

    @property
    def size_bytes(self) -> int:
        """The disk's virtual size."""

    async def extents(self) -> ExtentMap:
        """All extents of the disk.  They are fetched once; raises OSError (EIO) if they cannot be had."""

    async def allocated_bytes(self) -> int | None:
        """How much of the disk is data; None if that is not known yet, as of a very large disk at first, which is
        then found out while nobody waits.  Raises OSError (EIO) as extents() does.
        """

    async def dirty(self, start: int) -> Changes:
        """The dirty extents from `start` on, which lies within the disk, as far as one look tells: that is some of the
        disk at least, and need not be all.  Who wants more asks again from where the answer ends, and so sets the pace.

        All of the disk is dirty if it is not known what has changed.  Raises OSError (EIO) as extents() does.
        """

    async def direct(self) -> Direct | None:
        """A faster way to the same bytes, where there is one.  Raises OSError if it cannot be opened."""

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """The bytes [offset, offset + length), all of them; the range lies within the disk.

        Raises OSError (EIO) if they cannot be had, at a deadline at the latest: never other bytes in their place.
        """


class OpenImage(Image, Protocol):
    """An image as its source hands it out."""

    def close(self) -> None:
        """No read is answered from now on.  Idempotent; waits for nothing."""
