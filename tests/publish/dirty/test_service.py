"""The socket of dirty extents: each client gets them at its own pace, and one that stops, vanishes or talks nonsense is
nobody else's trouble.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing

from snapmount.core.changes import Changes, everything
from snapmount.core.dirtystream import Piece, Request
from snapmount.core.extents import HOLE, ZERO, ExtentMap
from snapmount.core.image import Image
from snapmount.core.lifecycle import State
from snapmount.core.snapshot import Disk
from snapmount.errors import NotFoundError, SnapmountError, StateError, UnreachableError
from snapmount.publish.dirty import SOCKET, address, client, service
from snapmount.publish.dirty.service import MOST_READERS, Service, served
from snapmount.records.record import Record
from snapmount.records.store import Store

from ...rig.records import a_record, a_snapshot

MIB = 1 << 20
ALL = Request((), with_data=True)
EXTENTS = Request((), with_data=False)


class ADisk:
    """A disk with a hole in its middle."""

    def __init__(self, name: str = "vda", size: int = 8 * MIB) -> None:
        self.name, self.size_bytes = name, size
        self.third = size // 3 // 512 * 512
        content = (name.encode() + os.urandom(4093)) * (size // 4096)
        self.content = content[: self.third] + bytes(self.third) + content[2 * self.third :]
        self.reads = 0
        self.looks = 0
        self.reads_fail_from = size
        self.may_look = trio.Event()
        self.may_look.set()

    async def allocated_bytes(self) -> int | None:
        return (await self.extents()).data_bytes

    async def direct(self) -> None:
        return None

    async def extents(self) -> ExtentMap:
        extents = ExtentMap()
        extents.append_status([self.third, 0, self.third, HOLE | ZERO, self.size_bytes - 2 * self.third, 0])
        return extents

    async def dirty(self, start: int) -> Changes:
        self.looks += 1
        await self.may_look.wait()
        return everything(await self.extents(), start)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        if offset >= self.reads_fail_from:
            raise OSError(errno.EIO, f"{self.name}: no answer")
        return self.content[offset : offset + length]


@pytest.fixture
def record(store: Store) -> Record:
    """An active snapshot of two disks, whose server this process is."""
    disks = tuple(Disk(name, 8 * MIB, "raw", f"/{name}.img") for name in ("vda", "vdb"))
    record = a_record(replace(a_snapshot(), disks=disks))
    return replace(record, state=State.ACTIVE)


@asynccontextmanager
async def serving(store: Store, record: Record, images: Sequence[Image]) -> AsyncIterator[Service]:
    lease = store.lease(record)
    async with served(lease.directory, record.snapshot, images) as own:
        yield own


async def told(record: Record, store: Store, request: Request = EXTENTS) -> list[Piece]:
    """What a client is told."""

    def collect() -> list[Piece]:
        return [piece for pieces in client.told(record, store, request) for piece in pieces]

    return await trio.to_thread.run_sync(collect)


async def connected(store: Store, record: Record, request: bytes) -> trio.SocketStream:
    """A client that has asked, and reads nothing by itself."""
    with address(store.path(record.id)) as path:
        stream = await trio.open_unix_socket(path)
    await stream.send_all(request)
    return stream


def by_disk(pieces: list[Piece]) -> dict[str, bytes]:
    """The disks of 8 MiB that the pieces tell of."""
    images: dict[str, bytearray] = {}
    at, disk = 0, ""
    for piece in pieces:
        if piece.line and "disk" in piece.line:
            disk, at = piece.line["disk"], piece.line["start"]
            images.setdefault(disk, bytearray(8 * MIB))
        elif piece.line is None:
            images[disk][at : at + len(piece.raw)] = piece.raw
            at += len(piece.raw)
    return {name: bytes(image) for name, image in images.items()}


async def test_extents_and_bytes_are_told_in_the_disks_order(store: Store, record: Record) -> None:
    disks = [ADisk("vda"), ADisk("vdb")]
    async with serving(store, record, disks):
        pieces = await told(record, store)
        lines = [piece.line for piece in pieces if piece.line]
        expected = [
            (disk.name, each.start, each.length, not each.is_zero) for disk in disks for each in await disk.extents()
        ]
        assert [(line["disk"], line["start"], line["length"], line["data"]) for line in lines[1:-1]] == expected
        assert lines[-1]["data_bytes"] + lines[-1]["zero_bytes"] == 16 * MIB
        assert disks[0].reads == 0, "nobody has asked for bytes"
        assert by_disk(await told(record, store, ALL)) == {disk.name: disk.content for disk in disks}
        only = await told(record, store, Request(("vdb",), with_data=True))
        assert by_disk(only) == {"vdb": disks[1].content}


async def test_the_socket_is_its_owner_s_alone_and_goes_with_the_service(store: Store, record: Record) -> None:
    async with serving(store, record, [ADisk()]):
        path = store.path(record.id) / SOCKET
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def test_a_runtime_directory_with_a_long_name_is_as_good(store: Store, record: Record) -> None:
    far = Store(store.directory / ("x" * 200) / ("y" * 200))
    async with serving(far, record, [ADisk("vda"), ADisk("vdb")]):
        assert (await told(record, far))[-1].line


async def test_what_a_dead_server_has_left_is_replaced(store: Store, record: Record) -> None:
    lease = store.lease(record)
    with socket.socket(socket.AF_UNIX) as left, address(lease.directory) as path:
        left.bind(path)
    async with served(lease.directory, record.snapshot, [ADisk("vda"), ADisk("vdb")]):
        assert (await told(record, store))[-1].line


async def test_where_no_socket_can_be_made_the_snapshot_is_shown_without(
    store: Store, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    (store.lease(record).directory / SOCKET).mkdir()
    async with served(store.path(record.id), record.snapshot, [ADisk()]):
        assert "dirty extents cannot be told: no socket can be made" in caplog.text
    caplog.clear()


async def test_a_reader_that_stops_costs_a_few_reads_and_others_nothing(store: Store, record: Record) -> None:
    disks = [ADisk("vda", 64 * MIB), ADisk("vdb")]
    async with serving(store, record, disks), await connected(store, record, ALL.line()) as stopped:
        assert await stopped.receive_some(1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = disks[0].reads
        assert 0 < before < 10
        assert len(by_disk(await told(record, store, Request(("vdb",), with_data=True)))) == 1
        assert disks[0].reads == before
        while disks[0].reads < 20:  # once it reads on, so does the service
            assert await stopped.receive_some()


async def test_a_reader_that_has_gone_is_read_for_no_more(store: Store, record: Record) -> None:
    disks = [ADisk("vda", 64 * MIB), ADisk("vdb")]
    async with serving(store, record, disks) as own:
        async with await connected(store, record, ALL.line()) as gone:
            assert await gone.receive_some(1)
        await ended(own)
        assert disks[0].reads < 10


async def test_a_reader_that_goes_while_extents_are_found_is_not_waited_for(store: Store, record: Record) -> None:
    disks = [ADisk("vda"), ADisk("vdb")]
    disks[0].may_look = trio.Event()
    async with serving(store, record, disks) as own:
        async with await connected(store, record, ALL.line()) as gone:
            assert await gone.receive_some(1)
            await trio.testing.wait_all_tasks_blocked()
        await ended(own)
        assert disks[0].looks == 1


async def ended(own: Service) -> None:
    """Wait until nobody is served."""
    with trio.fail_after(30):
        while own._running:
            await trio.testing.wait_all_tasks_blocked()


async def test_a_client_is_told_that_the_server_is_there_while_extents_are_found(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STILL_THERE_S", 0.01)
    monkeypatch.setattr(client, "SILENCE_S", 10.0)
    disks = [ADisk("vda"), ADisk("vdb")]
    disks[0].may_look = trio.Event()
    async with serving(store, record, disks), trio.open_nursery() as nursery:
        async with await connected(store, record, EXTENTS.line()) as patient:
            received = b""
            while not received.endswith(b"\n\n\n"):
                received += await patient.receive_some()
        nursery.start_soon(let_look, disks[0])
        assert (await told(record, store))[-1].line


async def let_look(disk: ADisk) -> None:
    """When a second client waits for it."""
    while disk.looks < 2:
        await trio.sleep(service.STILL_THERE_S)
    disk.may_look.set()


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SILENCE_S", 0.05)
    monkeypatch.setattr(client, "EXPLAINED_S", 0.0)
    disk = ADisk()
    disk.may_look = trio.Event()
    async with serving(store, record, [disk, ADisk("vdb")]):
        with pytest.raises(UnreachableError, match="has not answered for"):
            await told(record, store)


async def test_so_many_are_served_and_then_others_again(store: Store, record: Record) -> None:
    disks = [ADisk("vda", 64 * MIB), ADisk("vdb")]
    async with serving(store, record, disks) as own:
        readers = [await connected(store, record, ALL.line()) for _ in range(MOST_READERS)]
        for reader in readers:
            assert await reader.receive_some(1)
        with pytest.raises(StateError, match=f"has {MOST_READERS} readers of its dirty extents already"):
            await told(record, store)
        for reader in readers:
            await reader.aclose()
        await ended(own)
        assert (await told(record, store))[-1].line


async def test_what_cannot_be_read_is_told_after_what_can(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "EXPLAINED_S", 0.0)
    disks = [ADisk("vda"), ADisk("vdb")]
    disks[0].reads_fail_from = 6 * MIB
    found: list[Piece] = []

    def collect() -> None:
        for pieces in client.told(record, store, ALL):
            found.extend(pieces)

    async with serving(store, record, disks):
        with pytest.raises(UnreachableError, match="vda: no answer"):
            await trio.to_thread.run_sync(collect)
    image = by_disk(found)["vda"]
    assert image[: disks[0].third] == disks[0].content[: disks[0].third]
    assert found[-1].line is None, "no last line"


async def test_a_lost_snapshot_ends_its_streams_and_begins_none(store: Store, record: Record) -> None:
    disks = [ADisk("vda", 64 * MIB), ADisk("vdb")]
    lease = store.lease(record)
    async with served(lease.directory, record.snapshot, disks) as own:
        async with await connected(store, record, ALL.line()) as stopped:
            assert await stopped.receive_some(1)
            lease.note(State.LOST, "vda.img has been written to")
            own.stop()
            await ended(own)
            left = b""
            while more := await stopped.receive_some():
                left += more
            assert b'"end"' not in left
        with pytest.raises(StateError, match=r"is lost: vda\.img has been written to"):
            await told(record, store)


async def test_a_disk_that_there_is_not_is_named(store: Store, record: Record) -> None:
    async with serving(store, record, [ADisk("vda"), ADisk("vdb")]):
        with pytest.raises(NotFoundError, match="has no disk vdz"):
            await told(record, store, Request(("vda", "vdz"), with_data=False))


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[[[[\n", b"x" * (1 << 17), b"\xff\n"])
async def test_nonsense_is_answered_with_an_error_and_the_next_one_is_served(
    store: Store, record: Record, nonsense: bytes
) -> None:
    async with serving(store, record, [ADisk("vda"), ADisk("vdb")]):
        with address(store.path(record.id)) as path:
            stream = await trio.open_unix_socket(path)
        async with stream:
            received = b""
            try:
                await stream.send_all(nonsense)
                while more := await stream.receive_some():
                    received += more
            except trio.BrokenResourceError:
                pass  # it is more than anybody reads
            assert received.startswith(b'{"error": "the request for dirty extents makes no sense') or not received
        assert (await told(record, store))[-1].line


async def test_a_client_that_asks_nothing_is_let_go(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "REQUEST_S", 0.01)
    async with serving(store, record, [ADisk("vda"), ADisk("vdb")]), await connected(store, record, b"{") as silent:
        assert b"makes no sense" in await silent.receive_some()


async def test_a_server_without_a_socket_is_told_as_such(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "EXPLAINED_S", 0.0)
    store.lease(record)
    with pytest.raises(UnreachableError, match="tells no dirty extents"):
        await told(record, store)


async def test_a_stream_that_is_cut_off_is_explained_by_what_has_become_of_the_snapshot(
    store: Store, record: Record
) -> None:
    lease = store.lease(record)
    errors: list[str] = []

    async def ask() -> None:
        try:
            await told(record, store)
        except SnapmountError as error:
            errors.append(error.message)

    with socket.socket(socket.AF_UNIX) as listening, address(lease.directory) as path:
        listening.bind(path)
        listening.listen()
        for end in (partial(lease.note, State.ENDING), lease.forget):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                accepted, _ = await trio.to_thread.run_sync(listening.accept)
                end()
                accepted.close()
    assert [message.removeprefix(f"snapshot {record.id} of vm1 ") for message in errors] == [
        "is ending",
        "has ended before all of it was read",
    ]
