"""The stream of dirty extents is told apart in whichever pieces it comes, and one that was cut off is never whole."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import dirtystream
from snapmount.core.dirtystream import FRAME_BYTES, STILL_THERE, Decoder, Piece, Request, StreamError
from snapmount.core.document import to_document
from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.core.snapshot import Disk, Snapshot

from ..strategies import PROPERTY, disk_names, snapshots, text

DISKS = (Disk("vda", 1 << 40, "qcow2", "/images/vda"), Disk("vdb", 512, "raw", "/images/vdb"))
SNAPSHOT = Snapshot("3f2a91bc", "vm1", "6695eb01", datetime(2026, 11, 23, tzinfo=UTC), "pull", False, DISKS, ())

# The bytes look like lines of the stream, or like the end of one.
payloads = st.lists(st.sampled_from([b"\n", b'{"end": true}\n', b"\0", b"x" * 300]), min_size=1).map(b"".join)
extents = st.tuples(st.integers(0, 1 << 62), st.none() | payloads)  # None: zeros
streams = st.lists(extents, max_size=6)


def written(parts: list[tuple[int, bytes | None]], *, with_data: bool) -> tuple[bytes, list[Piece]]:
    """A stream with these extents, and what it says."""
    lines = [(dirtystream.head(SNAPSHOT, DISKS), b"")]
    for start, data in parts:
        extent = Extent(start, 7, HOLE | ZERO) if data is None else Extent(start, len(data), 0)
        lines.append((dirtystream.extent("vda", extent), (data or b"") if with_data else b""))
    lines.append((dirtystream.end(1, 2), b""))
    pieces = []
    for line, data in lines:
        pieces.append(Piece(line, json.loads(line)))
        pieces += [Piece(data, None)] if data else []
    return b"".join(line + data for line, data in lines), pieces


def fed(decoder: Decoder, stream: bytes, cuts: list[int]) -> list[Piece]:
    """What the decoder tells of a stream that comes in such pieces; what came apart of a disk is put together."""
    found: list[Piece] = []
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(places):
        for piece in decoder.feed(stream[start:end]):
            if piece.line is None and found and found[-1].line is None:
                found[-1] = Piece(found[-1].raw + piece.raw, None)
            else:
                found.append(piece)
    return found


@PROPERTY
@given(streams, st.booleans(), st.lists(st.integers(0, 2000)))
def test_a_stream_is_told_apart_in_whichever_pieces_it_comes(
    parts: list[tuple[int, bytes | None]], with_data: bool, cuts: list[int]
) -> None:
    stream, pieces = written(parts, with_data=with_data)
    decoder = Decoder(with_data=with_data)
    assert fed(decoder, stream, cuts) == pieces
    assert decoder.is_whole
    assert b"".join(piece.raw for piece in pieces) == stream, "it can be passed on"


@PROPERTY
@given(streams, st.booleans(), st.data())
def test_a_stream_that_was_cut_off_is_not_whole(
    parts: list[tuple[int, bytes | None]], with_data: bool, data: st.DataObject
) -> None:
    stream, _ = written(parts, with_data=with_data)
    decoder = Decoder(with_data=with_data)
    fed(decoder, stream[: data.draw(st.integers(0, len(stream) - 1))], [])
    assert not decoder.is_whole


@PROPERTY
@given(streams, st.booleans())
def test_what_keeps_a_connection_alive_between_lines_says_nothing(
    parts: list[tuple[int, bytes | None]], with_data: bool
) -> None:
    _, pieces = written(parts, with_data=with_data)
    stream = b"".join((STILL_THERE if piece.line else b"") + piece.raw for piece in pieces)
    assert fed(Decoder(with_data=with_data), stream, []) == pieces


@pytest.mark.parametrize(
    "wrong",
    [
        b"vda 0 512 data\n",
        b"[]\n",
        b"\xff\n",
        b'{"data": true}\n',
        b'{"data": true, "length": "5"}\n',
        b'{"data": true, "length": -1}\n',
        b'{"end": true}\n{"end": true}\n',
        b'{"end": true}\nx',
    ],
)
def test_a_stream_of_another_form_is_refused(wrong: bytes) -> None:
    with pytest.raises(StreamError):
        list(Decoder(with_data=True).feed(wrong))


def test_a_line_without_an_end_is_refused_before_memory_is_full() -> None:
    decoder = Decoder(with_data=False)
    assert list(decoder.feed(bytes(dirtystream.LINE_BYTES_MAX))) == []
    with pytest.raises(StreamError, match="a line has no end"):
        list(decoder.feed(b"x"))


@PROPERTY
@given(st.integers(0, 1 << 62), st.integers(1, 5 * FRAME_BYTES), st.booleans())
def test_the_frames_of_an_extent_are_all_of_it_and_those_with_bytes_are_small(
    start: int, length: int, is_zero: bool
) -> None:
    whole = Extent(start, length, HOLE | ZERO if is_zero else 0)
    frames = list(dirtystream.frames(whole))
    assert [frame.start for frame in frames] == [start, *(frame.end for frame in frames[:-1])]
    assert frames[-1].end == whole.end
    assert all(frame.is_zero == is_zero and frame.length > 0 for frame in frames)
    assert len(frames) == 1 if is_zero else all(frame.length <= FRAME_BYTES for frame in frames)


@PROPERTY
@given(snapshots)
def test_the_first_line_is_snapshot_json(snapshot: Snapshot) -> None:
    line = dirtystream.head(snapshot, snapshot.disks)
    assert line.count(b"\n") == 1
    assert json.loads(line) == to_document(snapshot)


def test_the_lines_have_the_documented_shape() -> None:
    disks = [disk["name"] for disk in json.loads(dirtystream.head(SNAPSHOT, DISKS[1:]))["disks"]]
    assert disks == ["vdb"]
    data = {"disk": "vda", "start": 512, "length": 1 << 40, "data": True}
    assert json.loads(dirtystream.extent("vda", Extent(512, 1 << 40, 0))) == data
    assert json.loads(dirtystream.extent("vda", Extent(512, 1 << 40, ZERO))) == data | {"data": False}
    assert json.loads(dirtystream.end(5, 7)) == {"end": True, "data_bytes": 5, "zero_bytes": 7}
    assert json.loads(dirtystream.failure("why", 6)) == {"error": "why", "exit_code": 6}


@PROPERTY
@given(st.lists(disk_names).map(tuple), st.booleans())
def test_a_request_is_understood(disks: tuple[str, ...], with_data: bool) -> None:
    line = Request(disks, with_data).line()
    assert line.index(b"\n") == len(line) - 1
    assert Request.of(line) == Request(disks, with_data)


@PROPERTY
@given(text.map(str.encode) | st.binary())
def test_what_is_no_request_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of whichever kind
        Request.of(line)
