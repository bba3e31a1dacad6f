"""A raw image file or block device of this host as an image, read through one descriptor.

Nobody may write to it meanwhile: for a file the descriptor has QEMU's lock (lock.py).  As QEMU shows it to a guest, its
size is rounded up to whole sectors, and what it has beyond the file's end is zero (bdrv_getlength()).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

import trio

from ..core.changes import Changes, everything
from ..core.extents import HOLE, ZERO, ExtentMap
from ..core.image import LocalFile
from ..errors import StateError
from ..host import blocking
from ..host.blocking import Threads
from . import lock
from .extents import Extents, Tell

log = logging.getLogger(__name__)
T = TypeVar("T")

SECTOR_BYTES = 512
OPEN_S = 10.0
STEP_EXTENTS = 10_000  # that one call of a thread looks for
THREADS = Threads("raw", 40)  # those that a file system may hold up


class _Descriptor:
    """A descriptor that is closed when nobody uses it any more: a thread may be left behind in a read of a file system
    that does not answer, and must not read what has the same number then.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        self._users = 1

    def use(self, function: Callable[[int], T]) -> T:
        """Call it with the descriptor; blocks.  Raises OSError: EBADF once it is closed, or the function's."""
        with self._lock:
            if not self._users:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        try:
            return function(self.number)
        finally:
            self._leave()

    def close(self) -> None:
        """Drop QEMU's lock at once."""
        lock.release(self.number)
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self.number)


class FileImage:
    """An Image (core.image) that is a file or a block device."""

    def __init__(self, nursery: trio.Nursery, name: str, path: str, descriptor: int, deadline_s: float) -> None:
        """The image closes the descriptor.  Blocks for a moment: the file has been opened."""
        self.name = name
        self._path = path
        self._descriptor = _Descriptor(descriptor)
        self._file_bytes = os.lseek(descriptor, 0, os.SEEK_END)  # of a block device too, for which fstat(2) tells 0
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._deadline_s = deadline_s
        self._closed = False
        self._end_with: list[Callable[[], None]] = []  # what ends reads past us
        self._extents = Extents(nursery, self._find_extents)

    @property
    def size_bytes(self) -> int:
        """See Image."""
        return -(-self._file_bytes // SECTOR_BYTES) * SECTOR_BYTES

    async def extents(self) -> ExtentMap:
        """See Image.  A block device is all data: it does not tell."""
        return await self._extents.all()

    async def allocated_bytes(self) -> int | None:
        """See Image."""
        return await self._extents.allocated_bytes()

    async def dirty(self, start: int) -> Changes:
        """See Image."""
        return everything(await self._extents.beyond(start), start)

    async def direct(self) -> LocalFile | None:
        """See Image."""
        self._check_open()
        return LocalFile(self._descriptor.number, self._file_bytes, self._deadline_s, self._end_with.append)

    async def read(self, offset: int, length: int) -> bytes:
        """See Image.  Ends within the deadline given to opened()."""
        self._check_open()
        wanted = max(0, min(length, self._file_bytes - offset))
        data = await self._call(partial(_pread, offset, wanted))
        self._check_open()
        if len(data) < wanted:
            raise OSError(errno.EIO, f"{self._path} has become shorter")
        return data if wanted == length else data + bytes(length - wanted)

    def close(self) -> None:
        """Let others have the file; reads fail from now on."""
        if not self._closed:
            self._closed = True
            for end in self._end_with:
                end()
            self._descriptor.close()

    def _check_open(self) -> None:
        """Raise OSError (EIO) if the image is closed."""
        if self._closed:
            raise OSError(errno.EIO, f"{self.name}: the snapshot has ended")

    async def _find_extents(self, tell: Tell) -> ExtentMap:
        extents = ExtentMap()
        while extents.end < self.size_bytes:
            self._check_open()
            for length, flags in await self._call(partial(self._look, extents.end)):
                extents.append(length, flags)
            tell(extents)
        log.info("%s: %d extents, %d of %d bytes data", self.name, len(extents), extents.data_bytes, self.size_bytes)
        return extents

    def _look(self, start: int, descriptor: int) -> list[tuple[int, int]]:
        """Some extents from `start` on: length, flags.  Blocks.  lseek(2)"""
        if not self._is_file:
            return [(self.size_bytes - start, 0)]
        found: list[tuple[int, int]] = []
        while start < self.size_bytes and len(found) < STEP_EXTENTS:
            data = _seek(descriptor, start, os.SEEK_DATA)
            if data is None:
                found.append((self.size_bytes - start, HOLE | ZERO))
                break
            found.append((data - start, HOLE | ZERO))
            hole = _seek(descriptor, data, os.SEEK_HOLE) or self._file_bytes
            start = self.size_bytes if hole >= self._file_bytes else hole
            found.append((start - data, 0))
        return found

    async def _call(self, function: Callable[[int], T]) -> T:
        """Call it in a thread, by the deadline.  Raises OSError (EIO)."""
        try:
            return await blocking.call(self._deadline_s, self._descriptor.use, function, threads=THREADS)
        except trio.TooSlowError:
            what = f"{self._path}: its file system did not answer within {self._deadline_s:g} s"
            raise OSError(errno.EIO, what) from None
        except OSError as error:
            raise OSError(errno.EIO, f"{self._path} cannot be read: {error.strerror}") from error


def _seek(descriptor: int, offset: int, whence: int) -> int | None:
    """None if there is nothing of that kind from there on."""
    try:
        return os.lseek(descriptor, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _pread(offset: int, length: int, descriptor: int) -> bytes:
    """All of it, less only where the file ends."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


@contextlib.asynccontextmanager
async def opened(name: str, path: str, deadline_s: float) -> AsyncIterator[FileImage]:
    """An image of that file or block device, with QEMU's lock; each read ends within `deadline_s` seconds.  Raises as
    lock.held() does, and StateError where the file system does not answer.
    """
    try:
        with trio.CancelScope(shield=True):  # else a thread left behind would open what nobody closes
            descriptor = await blocking.call(OPEN_S, lock.held, path)
    except trio.TooSlowError:
        raise StateError(f"{path}: its file system did not answer within {OPEN_S:g} s") from None
    async with trio.open_nursery() as nursery:
        image = FileImage(nursery, name, path, descriptor, deadline_s)
        try:
            yield image
        finally:
            image.close()
            nursery.cancel_scope.cancel()
