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
from collections.abc import AsyncIterator

import trio

from . import blocking
from .errors import MissingError, UnreachableError

try:
    import nbd
except ImportError:
    raise MissingError("the Python module of libnbd is missing", "sudo apt-get install python3-libnbd") from None

log = logging.getLogger(__name__)

CONNECTIONS = 4
CONNECT_S = 10.0


class Connection:
    """One connection to an export, and the way to cut it from another thread."""

    def __init__(self, socket_path: str, export: str) -> None:
        """Connect; blocks.  Raises nbd.Error."""
        self._handle = nbd.NBD()
        self._handle.set_export_name(export)
        self._handle.connect_unix(socket_path)
        self.size_bytes: int = self._handle.get_size()
        # a descriptor of our own: libnbd's may be closed, and its number used anew, at any time
        self.socket = socket.socket(fileno=os.dup(self._handle.aio_get_fd()))

    def read(self, offset: int, length: int) -> bytearray:
        """Blocks.  Raises nbd.Error."""
        data: bytearray = self._handle.pread(length, offset)
        return data

    def is_usable(self) -> bool:
        """Whether another request can be sent."""
        return bool(self._handle.aio_is_ready())

    def cut(self) -> None:
        """Make the request under way, if any, fail at once.  Never blocks; idempotent."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


async def connect(socket_path: str, export: str) -> Connection:
    """A new connection.  Raises UnreachableError."""
    try:
        return await blocking.call(CONNECT_S, Connection, socket_path, export)
    except nbd.Error as error:
        raise UnreachableError(f"QEMU's NBD export {export} at {socket_path} cannot be opened: {error}") from error
    except trio.TooSlowError:
        raise UnreachableError(
            f"QEMU's NBD export {export} at {socket_path} did not answer within {CONNECT_S:g} s"
        ) from None


class NbdImage:
    """An Image (core.image) that is read from an NBD export."""

    def __init__(self, name: str, socket_path: str, export: str, size_bytes: int, deadline_s: float) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self._socket_path = socket_path
        self._export = export
        self._deadline_s = deadline_s
        self._slots = trio.CapacityLimiter(CONNECTIONS)
        self._idle: list[Connection] = []
        self._closed = False

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """See Image.  Waits for the deadline given to opened() at most."""
        try:
            with trio.fail_after(self._deadline_s):
                async with self._slots:
                    return await self._read(offset, length)
        except trio.TooSlowError:
            raise OSError(errno.EIO, f"{self.name}: no answer from QEMU within {self._deadline_s:g} s") from None
        except (nbd.Error, UnreachableError) as error:
            raise OSError(errno.EIO, f"{self.name}: read of {length} bytes at {offset}: {error}") from error

    async def _read(self, offset: int, length: int) -> bytearray:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._read_by(connection, offset, length)
            except nbd.Error:
                if connection.is_usable():
                    raise  # QEMU's own answer
                # it was cut while it lay idle: so may the others be
        return await self._read_by(await self._connect(), offset, length)

    async def _connect(self) -> Connection:
        if self._closed:
            raise UnreachableError("the snapshot has ended")
        connection = await connect(self._socket_path, self._export)
        if connection.size_bytes != self.size_bytes:
            connection.cut()
            raise UnreachableError(f"the export has {connection.size_bytes} bytes now, it had {self.size_bytes}")
        return connection

    async def _read_by(self, connection: Connection, offset: int, length: int) -> bytearray:
        finished = False
        try:
            data = await trio.to_thread.run_sync(connection.read, offset, length, abandon_on_cancel=True)
            finished = True
            return data
        except nbd.Error:
            finished = connection.is_usable()
            raise
        finally:
            if finished and not self._closed:
                self._idle.append(connection)
            else:
                connection.cut()

    def close(self) -> None:
        """Cut all idle connections; reads fail from now on, those under way as soon as they end."""
        self._closed = True
        while self._idle:
            self._idle.pop().cut()


@contextlib.asynccontextmanager
async def opened(name: str, socket_path: str, export: str, deadline_s: float) -> AsyncIterator[NbdImage]:
    """An image that is read from an export; each read ends within `deadline_s` seconds.  Raises UnreachableError."""
    connection = await connect(socket_path, export)
    image = NbdImage(name, socket_path, export, connection.size_bytes, deadline_s)
    image._idle.append(connection)
    try:
        yield image
    finally:
        image.close()


async def wait_until_gone(socket_path: str, export: str) -> None:
    """Return when QEMU ends the export: a connection that asks nothing is told nothing until it is closed.

    Returns at once where no connection can be had.
    """
    try:
        connection = await connect(socket_path, export)
    except UnreachableError:
        return
    try:
        await trio.lowlevel.wait_readable(connection.socket)
    finally:
        connection.cut()
