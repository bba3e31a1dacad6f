"""The stream in which a snapshot's dirty extents are told: what `dirty --json` and `dirty --data` print, and what its
server sends for them.  Its form is documented in the man page, "DIRTY EXTENTS".

It is JSON, a document a line: what the snapshot is, its dirty extents, and a line that ends it.  If the bytes are asked
for, those of an extent that is data follow its line.  A stream without its last line has been cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .document import from_document, to_document
from .extents import Extent
from .snapshot import Disk, Snapshot

FRAME_BYTES = 1 << 20  # of data that follow one line at most
LINE_BYTES_MAX = 1 << 24  # no line is longer
REQUEST_BYTES_MAX = 1 << 16  # nor a client's
STILL_THERE = b"\n"  # sent, and not printed, if there has been nothing to send for a while


class StreamError(ValueError):
    """The stream has another form."""


@dataclass(frozen=True)
class Request:
    """What a client asks its server for."""

    disks: tuple[str, ...]  # none: all of them
    with_data: bool  # and not the extents alone

    def line(self) -> bytes:
        """As it is sent."""
        return _line(to_document(self))

    @classmethod
    def of(cls, line: bytes) -> Request:
        """The one that has been sent.  Raises ValueError."""
        return from_document(cls, json.loads(line))


def head(snapshot: Snapshot, disks: Sequence[Disk]) -> bytes:
    """The first line: snapshot.json, of these disks."""
    return _line(to_document(replace(snapshot, disks=tuple(disks))))


def extent(disk: str, of: Extent) -> bytes:
    """The line of an extent."""
    kind = "false" if of.is_zero else "true"
    return b'{"disk": "%s", "start": %d, "length": %d, "data": %s}\n' % (
        *(disk.encode("ascii"), of.start, of.length),
        kind.encode("ascii"),
    )


def frames(whole: Extent) -> Iterator[Extent]:
    """The parts in which an extent and its bytes are sent: one that is zero has none, and is sent as it is."""
    if whole.is_zero:
        yield whole
        return
    for start in range(whole.start, whole.end, FRAME_BYTES):
        yield Extent(start, min(FRAME_BYTES, whole.end - start), whole.flags)


def end(data_bytes: int, zero_bytes: int) -> bytes:
    """The last line, with how much the extents are together."""
    return _line({"end": True, "data_bytes": data_bytes, "zero_bytes": zero_bytes})


def failure(message: str, exit_code: int) -> bytes:
    """What the server sends, and a client does not print, where a stream ends for want of what it is about."""
    return _line({"error": message, "exit_code": exit_code})


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode("ascii") + b"\n"


@dataclass(frozen=True)
class Piece:
    """Some bytes of the stream, and what they say."""

    raw: bytes
    line: Mapping[str, Any] | None  # None for bytes of a disk


class Decoder:
    """Tells the parts of a stream, however it comes in."""

    def __init__(self, *, with_data: bool) -> None:
        self.is_whole = False
        self._with_data = with_data
        self._rest = b""  # a line that has begun
        self._data_left = 0  # bytes of a disk that are to come

    def feed(self, received: bytes) -> Iterator[Piece]:
        """The parts that have come in, of which the last may be a part of a disk's bytes.  Raises StreamError."""
        received, self._rest, at = self._rest + received, b"", 0
        while at < len(received):
            if self.is_whole:
                raise StreamError("more follows the last line")
            if self._data_left:
                raw = received[at : at + self._data_left]
                self._data_left -= len(raw)
                yield Piece(raw, None)
            else:
                raw = received[at : received.find(b"\n", at) + 1]
                if not raw:
                    self._keep(received[at:])
                    return
                if raw != STILL_THERE:
                    yield Piece(raw, self._document(raw))
            at += len(raw)

    def _keep(self, rest: bytes) -> None:
        if len(rest) > LINE_BYTES_MAX:
            raise StreamError("a line has no end")
        self._rest = rest

    def _document(self, line: bytes) -> Mapping[str, Any]:
        try:
            document = json.loads(line)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise StreamError(f"a line is no JSON object: {line[:60]!r}")
        if self._with_data and document.get("data") is True:
            length = document.get("length")
            if type(length) is not int or length < 1:
                raise StreamError(f"a line tells no length: {line[:60]!r}")
            self._data_left = length
        self.is_whole = document.get("end") is True
        return document
