"""Serves the dirty extents of a snapshot to those who connect to its socket, each at the pace at which it reads.

What a reader gets is read by the image's own means, and only a few frames ahead: no reader costs QEMU a connection, one
that stops costs some buffers, and one that vanishes nothing.  None outlives the snapshot, or the loss of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from ...core import dirtystream
from ...core.dirtystream import Request
from ...core.image import Image
from ...core.snapshot import Snapshot
from ...errors import NotFoundError, SnapmountError, StateError, UnreachableError, UsageError
from . import MODE, SOCKET, address, unbound
from .parts import Parts

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_READERS = 16
BACKLOG = 64
REQUEST_S = 10.0  # that a client may take to say what it wants
STILL_THERE_S = 5.0  # how long nothing may be sent
SEND_BUFFER_BYTES = 1 << 20
SO_SNDBUFFORCE = 32  # socket(7); Python has no name for it


class Service:
    """What is told of a snapshot, and to how many at once."""

    def __init__(self, snapshot: Snapshot, images: Sequence[Image]) -> None:
        self._snapshot = snapshot
        self._images = {image.name: image for image in images}
        self._running: set[trio.CancelScope] = set()
        self._stopped = False

    def stop(self) -> None:
        """End all streams at once, without their last line, and begin no other: the point in time is lost."""
        self._stopped = True
        for scope in self._running:
            scope.cancel()

    async def answer(self, stream: trio.SocketStream) -> None:
        """Serve one client.  Raises nothing: whatever it does, the session goes on."""
        _widen(stream)
        try:
            with self._stoppable():
                await self._answer(stream)
        except* trio.BrokenResourceError:
            log.debug("a reader of dirty extents has gone")
        except* Exception:
            log.exception("dirty extents could not be told")

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        with trio.CancelScope() as scope:
            if self._stopped:
                scope.cancel()
            self._running.add(scope)
            try:
                yield
            finally:
                self._running.discard(scope)

    async def _answer(self, stream: trio.SocketStream) -> None:
        try:
            request = await _request(stream)
            images = self._asked_for(request)
        except SnapmountError as error:
            await stream.send_all(dirtystream.failure(error.message, error.exit_code))
            return
        names = [image.name for image in images]
        disks = [disk for disk in self._snapshot.disks if disk.name in names]
        await stream.send_all(dirtystream.head(self._snapshot, disks))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
            await _send(stream, Parts(nursery, images, with_data=request.with_data))
            nursery.cancel_scope.cancel()

    def _asked_for(self, request: Request) -> list[Image]:
        """Those images, in the snapshot's order.  Raises NotFoundError or StateError."""
        if len(self._running) > MOST_READERS:
            raise StateError(f"snapshot {self._snapshot.id} has {MOST_READERS} readers of its dirty extents already")
        for name in request.disks:
            if name not in self._images:
                raise NotFoundError(f"snapshot {self._snapshot.id} has no disk {name}")
        return [image for name, image in self._images.items() if not request.disks or name in request.disks]


def _widen(stream: trio.SocketStream) -> None:
    """Let whole frames lie in the socket, if we may (as root): each time that it is full, two processes wake up."""
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)


async def _request(stream: trio.SocketStream) -> Request:
    """What the client asks for.  Raises UsageError."""
    received = b""
    with trio.move_on_after(REQUEST_S):
        while not received.endswith(b"\n") and len(received) < dirtystream.REQUEST_BYTES_MAX:
            more = await stream.receive_some()
            if not more:
                break
            received += more
    try:
        return Request.of(received)
    except ValueError as error:
        raise UsageError(f"the request for dirty extents makes no sense: {error}") from error


async def _cancel_when_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """A client says nothing more; what it does not read any more is not read for it either."""
    while await stream.receive_some():
        pass
    scope.cancel()


async def _send(stream: trio.SocketStream, parts: Parts) -> None:
    """Send the parts: all of them, or those before what cannot be read."""
    while part := await _patiently(stream, parts.next):
        try:
            data = await _patiently(stream, part.data)
        except OSError as error:
            await stream.send_all(dirtystream.failure(error.strerror or str(error), UnreachableError.exit_code))
            return
        await stream.send_all(part.lines)
        await stream.send_all(data)


async def _patiently(stream: trio.SocketStream, wait: Callable[[], Awaitable[T]]) -> T:
    """What is waited for; meanwhile the client is told that somebody is there."""
    while True:
        with trio.move_on_after(STILL_THERE_S):
            return await wait()
        await stream.send_all(dirtystream.STILL_THERE)


@contextlib.asynccontextmanager
async def served(directory: Path, snapshot: Snapshot, images: Sequence[Image]) -> AsyncIterator[Service]:
    """Serve them from the snapshot's runtime directory until the block is left; if no socket can be made there, that is
    logged, and the snapshot shown without.
    """
    service = Service(snapshot, images)
    try:
        listener = _listener(directory)
    except OSError as error:
        log.warning("dirty extents cannot be told: no socket can be made in %s: %s", directory, error.strerror)
        yield service
        return
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, service, listener)
            yield service
            nursery.cancel_scope.cancel()
    finally:
        listener.socket.close()
        with contextlib.suppress(OSError):
            (directory / SOCKET).unlink()


def _listener(directory: Path) -> trio.SocketListener:
    """The socket, in the place of one that a server has left when it died.  Raises OSError."""
    listening = unbound()
    try:
        (directory / SOCKET).unlink(missing_ok=True)
        os.fchmod(listening.fileno(), MODE)  # the file's, less the umask
        with address(directory) as path:
            listening.bind(path)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


async def _listen(service: Service, listener: trio.SocketListener) -> None:
    try:
        await trio.serve_listeners(service.answer, [listener])
    except* OSError:
        log.exception("dirty extents are no longer told")
