"""NBD exports as images, by libnbd (python3-libnbd): https://libguestfs.org/nbd.3.html

An image keeps a few connections to its export, each used by one request at a time: a blocking read in a thread.  A read
that takes too long, or is cancelled, costs its connection and nothing else: shutting the socket down wakes the thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from ..core.changes import Changes, everything
from ..core.extents import ExtentMap
from ..core.image import NbdSockets
from ..core.survey import Survey
from ..errors import MissingError, UnreachableError
from ..host.blocking import Threads
from . import bitmap as changed
from .bitmap import Bitmap, Question
from .extents import Extents, Tell

try:
    import nbd
except ImportError:
    raise MissingError("the Python module of libnbd is missing", "sudo apt-get install python3-libnbd") from None

log = logging.getLogger(__name__)
T = TypeVar("T")

_ZEROS = bytes(1 << 20)  # FUSE asks for no more at once

ALLOCATION: str = nbd.CONTEXT_BASE_ALLOCATION
THREADS = Threads("nbd", 40)  # those that QEMU may hold up
IN_FLIGHT = 8  # questions about extents: few, for the guest's sake
CONNECTIONS = 4  # of an image, for its reads
DIRECT_CONNECTIONS = 4  # of each way past Python
DIRECT_WAYS = 3  # of an image: its two files, and its LUN
MOST_CONNECTIONS = 80  # of all images: QEMU takes 100 and lets others wait (since 9.1, and in older ones as mended)
CONNECT_S = 10.0


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    """Wait for QEMU in a thread; if that is cancelled, whoever calls cuts the connection, which ends the thread."""
    return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=THREADS.limiter())


class Connection:
    """One connection to an export, and the way to cut it from another thread, also while it is being made."""

    def __init__(self) -> None:
        self._handle = nbd.NBD()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.size_bytes = 0

    def open(self, socket_path: str, export: str, context: str | None) -> None:
        """Connect; blocks.  Without a metadata context, for simple replies to reads alone.  Raises nbd.Error or
        OSError.

        A simple reply is all of the data or an error.  Structured ones come in chunks, and libnbd counts their bytes,
        but does not see where they leave a gap.
        """
        self._handle.set_export_name(export)
        if context is None:
            self._handle.set_request_structured_replies(False)
        else:
            self._handle.add_meta_context(context)
        self.socket.settimeout(CONNECT_S)
        self.socket.connect(socket_path)
        # libnbd gets a descriptor of its own, which it closes, and whose number is used anew, at any time
        self._handle.connect_socket(os.dup(self.socket.fileno()))
        self.size_bytes = self._handle.get_size()

    def read(self, offset: int, length: int) -> bytearray:
        """Blocks.  Raises nbd.Error."""
        data: bytearray = self._handle.pread(length, offset)
        return data

    def statuses_twice(self, questions: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
        """Ask for the extents of some parts, and when there are the answers, once more; blocks.  Raises nbd.Error."""
        if not self._handle.can_meta_context(ALLOCATION):
            return [([length, 0], [length, 0]) for _, length in questions]
        return [*zip(self.statuses(questions), self.statuses(questions), strict=True)]

    def statuses(self, questions: Sequence[Question]) -> list[list[int]]:
        """Extents from each offset on, as many as one answer holds: length, flags, length, flags, ...; blocks.  Raises
        nbd.Error, also if the server has no such metadata context.
        """
        answers: list[list[int]] = [[] for _ in questions]
        cookies = []
        for (offset, length), told in zip(questions, answers, strict=True):
            self._wait(IN_FLIGHT - 1)
            cookies.append(self._handle.aio_block_status(length, offset, partial(_add, told)))
        self._wait(0)
        for cookie in cookies:
            self._handle.aio_command_completed(cookie)  # raises its error
        return answers

    def _wait(self, most: int) -> None:
        """Wait until no more requests than that are under way."""
        while self._handle.aio_in_flight() > most:
            self._handle.poll(-1)

    def is_usable(self) -> bool:
        """Whether another request can be sent."""
        return bool(self._handle.aio_is_ready())

    def cut(self) -> None:
        """Make the request under way, if any, fail at once.  Never blocks; idempotent."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def _add(told: list[int], _context: str, _offset: int, entries: list[int], _error: object) -> int:
    """What libnbd calls with an answer to block_status."""
    told.extend(entries)
    return 0


class SlowError(UnreachableError):
    """QEMU is there, but does not answer."""


async def connect(socket_path: str, export: str, context: str | None = ALLOCATION) -> Connection:
    """A new connection, see Connection.open().  Raises UnreachableError, of it SlowError if it takes too long."""
    connection = Connection()
    try:
        with trio.fail_after(CONNECT_S):
            await _in_thread(connection.open, socket_path, export, context)
        return connection
    except BaseException as error:
        connection.cut()  # the thread, where one still waits, ends with it
        what = f"QEMU's NBD export {export} at {socket_path}"
        if isinstance(error, (trio.TooSlowError, TimeoutError)):
            raise SlowError(f"{what} did not answer within {CONNECT_S:g} s") from None
        if isinstance(error, (nbd.Error, OSError)):
            raise UnreachableError(f"{what} cannot be opened: {error}") from error
        raise


class Budget:
    """How the connections that QEMU's NBD server takes are shared out among the images of a snapshot.

    Where there are too many, QEMU accepts no further ones, and reads that need one fail.
    """

    def __init__(self, images: int, most: int = MOST_CONNECTIONS) -> None:
        fetches, watchers = 8, 1
        share = (most - fetches - watchers) // images
        self.reads = max(1, min(CONNECTIONS, share // 2))  # of an image
        self.direct = max(0, min(DIRECT_WAYS * DIRECT_CONNECTIONS, share - self.reads))  # of an image
        self.fetches = trio.CapacityLimiter(fetches)  # of extents, at once


class NbdImage:
    """An Image (core.image) that is read from an NBD export."""

    def __init__(
        self,
        nursery: trio.Nursery,
        name: str,
        socket_path: str,
        export: str,
        size_bytes: int,
        deadline_s: float,
        budget: Budget,
        bitmap: Bitmap | None = None,
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self._socket_path = socket_path
        self._export = export
        self._deadline_s = deadline_s
        self._budget = budget
        self._bitmap = bitmap
        self._slots = trio.CapacityLimiter(budget.reads)
        self._idle: list[Connection] = []
        self._direct: list[Connection] = []
        self._direct_left = budget.direct
        self._closed = False
        self._extents = Extents(nursery, self._find_extents)

    async def extents(self) -> ExtentMap:
        """See Image.  Each question to QEMU must be answered within the deadline given to opened()."""
        return await self._extents.all()

    async def allocated_bytes(self) -> int | None:
        """See Image."""
        return await self._extents.allocated_bytes()

    async def dirty(self, start: int) -> Changes:
        """See Image."""
        if self._bitmap is None:
            return everything(await self._extents.beyond(start), start)
        try:
            async with self._budget.fetches:
                end, ranges = await self._dirty_ranges(self._bitmap, start)
                return await self._kinds(end, ranges)
        except (nbd.Error, UnreachableError, trio.TooSlowError) as error:
            raise OSError(errno.EIO, f"{self.name}: what has changed cannot be had: {error}") from error

    async def _dirty_ranges(self, bitmap: Bitmap, start: int) -> tuple[int, list[changed.Range]]:
        async with self._asking(bitmap.context) as connection:
            return await changed.dirty_ranges(
                partial(self._in_time, connection.statuses), bitmap, start, self.size_bytes
            )

    async def _kinds(self, end: int, ranges: list[changed.Range]) -> Changes:
        if not ranges:
            return Changes(end, ())
        async with self._asking(ALLOCATION) as connection:
            return await changed.kinds(partial(self._in_time, connection.statuses_twice), end, ranges)

    @contextlib.asynccontextmanager
    async def _asking(self, context: str) -> AsyncIterator[Connection]:
        """A connection for questions about extents."""
        connection = await self._connect(context)
        try:
            yield connection
        finally:
            connection.cut()

    async def _in_time(self, function: Callable[..., T], *args: Any) -> T:
        with trio.fail_after(self._deadline_s):
            return await _in_thread(function, *args)

    async def _find_extents(self, tell: Tell) -> ExtentMap:
        survey = Survey(self.size_bytes)
        try:
            async with self._budget.fetches, self._asking(ALLOCATION) as connection:
                while question := survey.question():
                    (told,) = await self._in_time(connection.statuses_twice, [question])
                    survey.learn(*told)
                    tell(survey.extents)
        except (nbd.Error, UnreachableError, trio.TooSlowError) as error:
            raise OSError(errno.EIO, f"{self.name}: the extents cannot be had: {error}") from error
        extents = survey.extents
        log.info("%s: %d extents, %d of %d bytes data", self.name, len(extents), extents.data_bytes, self.size_bytes)
        return extents

    async def direct(self) -> NbdSockets | None:
        """See Image; None if no connections are left for it.  A read over it asks QEMU for less than read() does:
        with structured replies QEMU looks for holes in what it sends each time.
        """
        self._check_open()
        count = min(DIRECT_CONNECTIONS, self._direct_left)
        if not count:
            return None
        self._direct_left -= count
        opened: list[Connection] = []
        try:
            while len(opened) < count:
                opened.append(await self._connect(None))
        except BaseException as error:
            self._direct_left += count
            for connection in opened:
                connection.cut()
            if isinstance(error, UnreachableError):
                raise OSError(errno.EIO, f"{self.name}: {error}") from error
            raise
        self._direct += opened
        return NbdSockets(tuple(connection.socket.fileno() for connection in opened), self._deadline_s)

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """See Image.  Ends within the deadline given to opened().  What is known to be zero is not asked of QEMU."""
        self._check_open()
        extents = self._extents.known
        if extents is None:
            return await self._ask(offset, length)
        first = extents.find(offset)
        if first.length < length:
            return await self._read_mixed(extents, offset, length)
        if first.is_zero and length <= len(_ZEROS):
            return memoryview(_ZEROS)[:length]
        return await self._ask(offset, length)

    def _check_open(self) -> None:
        """Raise OSError (EIO) if the image is closed."""
        if self._closed:
            raise OSError(errno.EIO, f"{self.name}: the snapshot has ended")

    async def _read_mixed(self, extents: ExtentMap, offset: int, length: int) -> bytearray:
        """What lies from the first data to the last is asked for at once, with the holes between."""
        parts = [extent for extent in extents.between(offset, offset + length) if not extent.is_zero]
        data = bytearray(length)
        if parts:
            start, end = parts[0].start, parts[-1].end
            data[start - offset : end - offset] = await self._ask(start, end - start)
        return data

    async def _ask(self, offset: int, length: int) -> bytearray:
        """Read from QEMU, by the deadline.  Raises OSError (EIO)."""
        try:
            with trio.fail_after(self._deadline_s):
                async with self._slots:
                    return await self._read_by_any(offset, length)
        except trio.TooSlowError:
            raise OSError(errno.EIO, f"{self.name}: no answer from QEMU within {self._deadline_s:g} s") from None
        except (nbd.Error, UnreachableError) as error:
            raise OSError(errno.EIO, f"{self.name}: read of {length} bytes at {offset}: {error}") from error

    async def _read_by_any(self, offset: int, length: int) -> bytearray:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._read_by(connection, offset, length)
            except nbd.Error:
                if connection.is_usable():
                    raise  # QEMU's own answer
                # it was cut while it lay idle: so may the others be
        return await self._read_by(await self._connect(None), offset, length)

    async def _read_by(self, connection: Connection, offset: int, length: int) -> bytearray:
        reusable = False
        try:
            data = await _in_thread(connection.read, offset, length)
            reusable = True
            return data
        except nbd.Error:
            reusable = connection.is_usable()
            raise
        finally:
            if reusable and not self._closed:
                self._idle.append(connection)
            else:
                connection.cut()

    async def _connect(self, context: str | None) -> Connection:
        if self._closed:
            raise UnreachableError("the snapshot has ended")
        connection = await connect(self._socket_path, self._export, context)
        if self._closed:
            connection.cut()
            raise UnreachableError("the snapshot has ended")
        if connection.size_bytes != self.size_bytes:
            connection.cut()
            raise UnreachableError(f"the export has {connection.size_bytes} bytes now, it had {self.size_bytes}")
        return connection

    def close(self) -> None:
        """Cut all idle connections; reads fail from now on, those under way as soon as they end."""
        self._closed = True
        for connection in self._idle + self._direct:
            connection.cut()
        self._idle.clear()
        self._direct.clear()


@contextlib.asynccontextmanager
async def opened(
    name: str,
    socket_path: str,
    export: str,
    deadline_s: float,
    budget: Budget | None = None,
    bitmap: Bitmap | None = None,
) -> AsyncIterator[NbdImage]:
    """An image that is read from an export; each read ends within `deadline_s` seconds.  All images of a server share a
    `budget`.  If there is a `bitmap`, it tells what has changed.  Raises UnreachableError.
    """
    connection = await connect(socket_path, export, None)
    try:
        async with trio.open_nursery() as nursery:
            size_bytes, shared = connection.size_bytes, budget or Budget(1)
            image = NbdImage(nursery, name, socket_path, export, size_bytes, deadline_s, shared, bitmap)
            image._idle.append(connection)
            yield image
            nursery.cancel_scope.cancel()
    finally:
        image.close()


async def wait_until_gone(socket_path: str, export: str) -> None:
    """Return when QEMU ends the export: a connection that asks nothing is told nothing until it is closed.

    Returns at once where no connection can be had.
    """
    while True:
        try:
            connection = await connect(socket_path, export)
        except SlowError:
            continue  # it is there all the same
        except UnreachableError:
            return
        break
    try:
        await trio.lowlevel.wait_readable(connection.socket)
    finally:
        connection.cut()
