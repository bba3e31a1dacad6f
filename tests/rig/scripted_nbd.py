"""A small NBD server that misbehaves as it is told to: a peer that lies, which no real server does on demand.

It speaks the fixed newstyle handshake, structured replies where they are asked for, simple ones else, and one metadata
context (NBD protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).  What it is about to send
passes a `Lie`, which may send something else, hang or hang up.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REQUEST_MAGIC, SIMPLE_MAGIC, STRUCTURED_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
OPTION_REPLY_MAGIC = 0x3E889045565A9
CONTEXT_ID = 7
READ, DISCONNECT, BLOCK_STATUS = 0, 2, 7
DONE = 1  # the flag of a structured reply's last chunk


class Hang(Exception):  # noqa: N818
    """Send this, if any, and nothing from then on, but keep the connection open."""

    def __init__(self, last: bytes = b"") -> None:
        super().__init__()
        self.last = last


class HangUp(Hang):
    """Send this, if any, and close the connection."""


@dataclass(frozen=True)
class Reply:
    """What the server is about to send."""

    step: str  # greeting, size, option, read (structured), simple, status
    number: int  # of this step of this export, over all connections, from 0 on
    export: str
    wire: bytes
    payload: int = 0  # how many bytes at its end tell of the disk: its data, or the flags of the last extent

    @property
    def header(self) -> bytes:
        return self.wire[: len(self.wire) - self.payload]


Lie = Callable[[Reply], bytes]


def honest(reply: Reply) -> bytes:
    """No lie."""
    return reply.wire


class ScriptedServer:
    """Serves a disk at a unix socket; each connection in a thread."""

    def __init__(self, path: Path, disk: bytes, extents: Sequence[tuple[int, int]] = ()) -> None:
        self.path = path
        self.disk = disk
        self.extents = extents or ((len(disk), 0),)  # (length, flags)
        self.lie: Lie = honest
        self.size = len(disk)  # as it is told
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._ended = threading.Event()

    @contextlib.contextmanager
    def serving(self) -> Iterator[ScriptedServer]:
        """Listen for as long as the block lasts; all connections are closed at its end."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(64)
            threads = [threading.Thread(target=self._accept, args=(listener,), daemon=True)]
            threads[0].start()
            try:
                yield self
            finally:
                self._ended.set()
                listener.shutdown(socket.SHUT_RDWR)
                threads[0].join(5)
                with self._lock:
                    for connection in self._connections:
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_RDWR)
        self.path.unlink()

    def _accept(self, listener: socket.socket) -> None:
        threads = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with self._lock:
                    self._connections.append(connection)
                threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join(5)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                export, is_structured = self._handshake(connection)
                self._transmit(connection, export, is_structured)
            except HangUp:
                pass
            except Hang:
                with contextlib.suppress(OSError):
                    while connection.recv(1 << 16):
                        pass
            except (OSError, struct.error):
                pass
            with self._lock:
                self._connections.remove(connection)

    def sent(self, step: str, export: str) -> int:
        """How many replies of that step there were for that export."""
        with self._lock:
            return self._counts.get((step, export), 0)

    def _send(self, connection: socket.socket, step: str, wire: bytes, payload: int = 0, export: str = "") -> None:
        with self._lock:
            number = self._counts.get((step, export), 0)
            self._counts[step, export] = number + 1
        try:
            connection.sendall(self.lie(Reply(step, number, export, wire, payload)))
        except Hang as end:
            connection.sendall(end.last)
            raise

    # -- handshake -----------------------------------------------------------------------------------------------------

    def _handshake(self, connection: socket.socket) -> tuple[str, bool]:
        """The export, and whether replies are structured.  Raises HangUp if the client wants no more."""
        self._send(connection, "greeting", b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        _receive(connection, 4)
        is_structured = False
        while True:
            _, option, length = struct.unpack(">8sII", _receive(connection, 16))
            data = _receive(connection, length)
            if option == 2:  # ABORT
                raise HangUp
            if option == 8:  # STRUCTURED_REPLY
                is_structured = True
                self._answer(connection, option, 1)
            elif option in (9, 10):  # LIST_META_CONTEXT, SET_META_CONTEXT
                self._answer(connection, option, 4, struct.pack(">I", CONTEXT_ID) + b"base:allocation")
                self._answer(connection, option, 1)
            elif option in (6, 7):  # INFO, GO
                flags = 0x103  # HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN
                export = data[4 : 4 + int.from_bytes(data[:4])].decode()
                self._answer(connection, option, 3, struct.pack(">HQH", 0, self.size, flags), "size", export)
                self._answer(connection, option, 1)
                if option == 7:
                    return export, is_structured
            else:
                self._answer(connection, option, 0x80000001)  # ERR_UNSUP

    def _answer(
        self,
        connection: socket.socket,
        option: int,
        kind: int,
        data: bytes = b"",
        step: str = "option",
        export: str = "",
    ) -> None:
        wire = struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data)) + data
        self._send(connection, step, wire, export=export)

    # -- transmission --------------------------------------------------------------------------------------------------

    def _transmit(self, connection: socket.socket, export: str, is_structured: bool) -> None:
        while True:
            _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", _receive(connection, 28))
            if kind == DISCONNECT:
                return
            if kind == BLOCK_STATUS:
                entries = b"".join(struct.pack(">II", *extent) for extent in self._extents_from(offset, length))
                told = chunk(cookie, 5, struct.pack(">I", CONTEXT_ID) + entries)
                self._send(connection, "status", told, 4, export)
                continue
            data = self.disk[offset : offset + length]
            if is_structured:
                self._send(connection, "read", chunk(cookie, 1, struct.pack(">Q", offset) + data), len(data), export)
            else:
                self._send(connection, "simple", struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie) + data, len(data), export)

    def _extents_from(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        start = 0
        for size, flags in self.extents:
            first, last = max(start, offset), min(start + size, offset + length)
            if first < last:
                yield last - first, flags
            start += size


def chunk(cookie: int, kind: int, data: bytes, flags: int = DONE) -> bytes:
    """A chunk of a structured reply."""
    return struct.pack(">IHHQI", STRUCTURED_MAGIC, flags, kind, cookie, len(data)) + data


def cookie_of(reply: Reply) -> int:
    """The cookie of a reply of transmission."""
    cookie: int = struct.unpack_from(">Q", reply.wire, 8)[0]
    return cookie


def _receive(connection: socket.socket, length: int) -> bytes:
    """So many bytes.  Raises HangUp if the client has gone."""
    data = b""
    while len(data) < length:
        got = connection.recv(length - len(data))
        if not got:
            raise HangUp
        data += got
    return data
