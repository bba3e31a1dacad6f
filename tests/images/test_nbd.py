"""NBD exports as images, read from real servers: the right bytes, or EIO for that read alone, and never a hang.

The server is nbdkit with filters that log its requests, hold them back or fail them; each test waits for what the log
says.  Where a test has `mock_clock`, trio's clock stands still until the test moves it: what is not to wait for a
deadline ends all the same.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snapmount.errors import UnreachableError
from snapmount.images import extents, nbd
from snapmount.images.nbd import NbdImage

from ..rig.libvirtd import wait_for
from ..rig.nbdkit import DISK, Server

READ_S = 30.0
HANG_S = 60.0


@pytest.fixture
def nbdkit() -> None:
    if not shutil.which("nbdkit"):
        pytest.skip("this host lacks nbdkit: run contrib/setup --test")


@pytest.fixture
async def server(nbdkit: None) -> AsyncIterator[Server]:
    """A server that is not started yet, in a test that may last for HANG_S: trio's own clock may stand still."""
    ended = threading.Event()

    async def watch() -> None:
        if not await trio.to_thread.run_sync(ended.wait, HANG_S, limiter=trio.CapacityLimiter(1)):
            raise TimeoutError(f"the test has not ended within {HANG_S:g} s")

    # not tmp_path, which may be too long for a unix socket
    with tempfile.TemporaryDirectory(prefix="snapmount-") as directory:
        server = Server(Path(directory))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                yield server
            finally:
                server.stop()
                ended.set()


@pytest.fixture
def serving(server: Server) -> Server:
    """A server of DISK."""
    server.start()
    return server


def open_sockets() -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(descriptor))
    return sorted(each for each in found if each.startswith("socket:"))


@pytest.fixture(autouse=True)
def _no_socket_is_left_open() -> Iterator[None]:
    """What is closed by the garbage collector alone is a ResourceWarning, and so an error."""
    before = open_sockets()
    yield
    gc.collect()
    wait_for(lambda: open_sockets() == before, "all sockets are closed")


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait in real time, whatever trio's clock says."""
    await trio.to_thread.run_sync(wait_for, condition, what, limiter=trio.CapacityLimiter(1))


async def assert_fails(image: NbdImage, offset: int = 0, length: int = 4096) -> OSError:
    with pytest.raises(OSError, match=f"^\\[Errno {errno.EIO}\\] vda: ") as caught:
        await image.read(offset, length)
    return caught.value


async def read_into(outcomes: list[bytes | OSError], image: NbdImage, offset: int = 0, length: int = 4096) -> None:
    try:
        outcomes.append(bytes(await image.read(offset, length)))
    except OSError as error:
        outcomes.append(error)


# -- the right bytes ---------------------------------------------------------------------------------------------------


async def test_an_image_has_the_name_and_size_of_its_disk(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        assert (image.name, image.size_bytes) == ("vda", len(DISK))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 512), (0, 1 << 20), (1, 1), (511, 2), (4095, 8193), (1 << 19, 128 << 10), ((1 << 20) - 1, 1)],
)
async def test_a_read_gives_the_bytes_of_that_place(serving: Server, offset: int, length: int) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        for _ in range(2):
            assert await image.read(offset, length) == DISK[offset : offset + length]


async def test_reads_one_after_the_other_share_a_connection(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        for number in range(20):
            assert await image.read(number * 1000, 1000) == DISK[number * 1000 : (number + 1) * 1000]
    assert serving.reads() == 20
    assert serving.connections() == 1


async def test_reads_at_the_same_time_get_their_own_bytes_each_over_a_few_connections(serving: Server) -> None:
    ranges = [(number * 4099, 1 + number * 997) for number in range(32)]
    outcomes: dict[int, bytes] = {}

    async def read(image: NbdImage, offset: int, length: int) -> None:
        outcomes[offset] = bytes(await image.read(offset, length))

    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.hold_back()
        async with trio.open_nursery() as nursery:
            for offset, length in ranges:
                nursery.start_soon(read, image, offset, length)
            await until(lambda: serving.reads() == nbd.CONNECTIONS, "each connection has a request")
            await wait_all_tasks_blocked()
            serving.go_on()
    assert outcomes == {offset: DISK[offset : offset + length] for offset, length in ranges}
    assert serving.connections() == nbd.CONNECTIONS


async def test_a_closed_image_has_no_connections_and_gives_no_bytes(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        await image.read(0, 512)
    await until(lambda: serving.open_connections() == 0, "the server has seen the end of all connections")
    assert "the snapshot has ended" in str(await assert_fails(image))
    assert serving.connections() == 1


async def test_a_connection_that_was_in_use_when_its_image_was_closed_is_not_kept(serving: Server) -> None:
    outcomes: list[bytes | OSError] = []
    async with trio.open_nursery() as nursery:
        async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
            serving.hold_back()
            nursery.start_soon(read_into, outcomes, image)
            await until(lambda: serving.reads() == 1, "the read is under way")
        serving.go_on()
    assert len(outcomes) == 1
    await until(lambda: serving.open_connections() == 0, "the server has seen the end of all connections")
    await assert_fails(image)


# -- errors of the server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["EIO", "EPERM", "ENOMEM", "ENOSPC", "ESHUTDOWN"])
async def test_an_error_of_the_server_fails_that_read_alone(server: Server, error: str) -> None:
    server.start(error=error)
    async with nbd.opened("vda", server.socket, "vda", READ_S) as image:
        assert await image.read(0, 4096) == DISK[:4096]
        with server.failing():
            assert "read of 512 bytes at 1024" in str(await assert_fails(image, 1024, 512))
        assert await image.read(1024, 512) == DISK[1024:1536]
    assert server.connections() == 1, "the connection is as good as before"


async def test_a_server_that_is_killed_fails_later_reads(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        assert await image.read(0, 4096) == DISK[:4096]
        serving.kill()
        for _ in range(2):
            await assert_fails(image)


async def test_a_server_that_is_killed_fails_the_reads_under_way_at_once(
    serving: Server, mock_clock: MockClock
) -> None:
    outcomes: list[bytes | OSError] = []
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.hold_back()
        async with trio.open_nursery() as nursery:
            for number in range(nbd.CONNECTIONS + 1):
                nursery.start_soon(read_into, outcomes, image, number * 4096)
            await until(lambda: serving.reads() == nbd.CONNECTIONS, "the reads are under way")
            serving.kill()
    assert [isinstance(each, OSError) and each.errno for each in outcomes] == [errno.EIO] * (nbd.CONNECTIONS + 1)
    assert "no answer" not in str(outcomes), "it was not the deadline"


async def test_idle_connections_that_have_died_are_replaced(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.hold_back()
        async with trio.open_nursery() as nursery:
            for number in range(nbd.CONNECTIONS):
                nursery.start_soon(image.read, number * 4096, 4096)
            await until(lambda: serving.reads() == nbd.CONNECTIONS, "each connection has a request")
            serving.go_on()
        serving.kill()
        serving.start()
        for number in range(nbd.CONNECTIONS + 1):
            assert await image.read(number * 4096, 4096) == DISK[number * 4096 : (number + 1) * 4096]
        assert serving.connections() == 1


async def test_an_export_that_has_another_size_now_is_not_taken_for_the_same(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.kill()
        serving.start(DISK + bytes(512))
        assert f"has {len(DISK) + 512} bytes now, it had {len(DISK)}" in str(await assert_fails(image))
        serving.kill()
        serving.start()
        assert await image.read(0, 4096) == DISK[:4096]


# -- a server that does not answer -------------------------------------------------------------------------------------


async def test_a_read_without_an_answer_fails_at_its_deadline_and_no_earlier(
    serving: Server, mock_clock: MockClock
) -> None:
    outcomes: list[bytes | OSError] = []
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.hold_back()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_into, outcomes, image)
            await until(lambda: serving.reads() == 1, "the read is under way")
            mock_clock.jump(READ_S - 0.1)
            await wait_all_tasks_blocked()
            assert outcomes == []
            mock_clock.jump(0.2)
        (error,) = outcomes
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO
        assert "vda: no answer from QEMU within 30 s" in str(error)
        serving.go_on()
        assert await image.read(0, 4096) == DISK[:4096]


async def test_reads_that_wait_for_a_connection_fail_at_their_deadline_too(
    serving: Server, mock_clock: MockClock
) -> None:
    outcomes: list[bytes | OSError] = []
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.hold_back()
        async with trio.open_nursery() as nursery:
            for number in range(3 * nbd.CONNECTIONS):
                nursery.start_soon(read_into, outcomes, image, number * 4096)
            await until(lambda: serving.reads() == nbd.CONNECTIONS, "each connection has a request")
            mock_clock.jump(READ_S + 0.1)
        assert [isinstance(each, OSError) and each.errno for each in outcomes] == [errno.EIO] * len(outcomes)
        assert len(outcomes) == 3 * nbd.CONNECTIONS
        assert serving.reads() == nbd.CONNECTIONS
        serving.go_on()
        assert await image.read(0, 4096) == DISK[:4096]


async def test_a_read_that_stalls_holds_up_no_other(server: Server, mock_clock: MockClock) -> None:
    server.start(half_stalled=True)
    stalled: list[bytes | OSError] = []
    half = len(DISK) // 2
    async with nbd.opened("vda", server.socket, "vda", READ_S) as image:
        async with trio.open_nursery() as nursery:
            for number in range(nbd.CONNECTIONS - 1):
                nursery.start_soon(read_into, stalled, image, half + number * 4096)
            await until(lambda: server.reads() == nbd.CONNECTIONS - 1, "the reads are under way")
            for number in range(3):
                assert await image.read(number * 4096, 4096) == DISK[number * 4096 : (number + 1) * 4096]
            assert stalled == []
            mock_clock.jump(READ_S + 0.1)
        assert [isinstance(each, OSError) and each.errno for each in stalled] == [errno.EIO] * (nbd.CONNECTIONS - 1)
        assert await image.read(0, 4096) == DISK[:4096]


async def test_a_cancelled_read_ends_at_once_and_so_does_its_thread(serving: Server, mock_clock: MockClock) -> None:
    threads = nbd.THREADS.limiter()
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.hold_back()
        async with trio.open_nursery() as nursery:
            for number in range(nbd.CONNECTIONS):
                nursery.start_soon(image.read, number * 4096, 4096)
            await until(lambda: serving.reads() == nbd.CONNECTIONS, "the reads are under way")
            nursery.cancel_scope.cancel()
        await until(lambda: not threads.borrowed_tokens, "the threads of the reads have ended")
        serving.go_on()
        assert await image.read(0, 4096) == DISK[:4096]


# -- connecting --------------------------------------------------------------------------------------------------------


async def connect_fails(path: str, export: str = "vda") -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        async with nbd.opened("vda", path, export, READ_S):
            pass
    return caught.value


async def test_without_a_server_the_error_names_export_and_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "none.sock")
    error = await connect_fails(path)
    assert error.message.startswith(f"QEMU's NBD export vda at {path} cannot be opened: ")


async def test_an_export_that_is_not_there_cannot_be_opened(serving: Server) -> None:
    error = await connect_fails(serving.socket, "vdb")
    assert "QEMU's NBD export vdb at" in error.message


async def test_a_server_that_hangs_up_is_no_export(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(server.socket)
        listener.listen()
        outcomes: list[UnreachableError] = []
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                outcomes.append(await connect_fails(server.socket))

            nursery.start_soon(connect)
            peer, _ = await trio.to_thread.run_sync(listener.accept)
            peer.close()
    assert "cannot be opened" in outcomes[0].message


async def test_a_server_that_never_says_anything_is_given_up(server: Server, mock_clock: MockClock) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(server.socket)
        listener.listen()
        outcomes: list[UnreachableError] = []
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                outcomes.append(await connect_fails(server.socket))

            nursery.start_soon(connect)
            peer, _ = await trio.to_thread.run_sync(listener.accept)
            mock_clock.jump(nbd.CONNECT_S - 0.1)
            await wait_all_tasks_blocked()
            assert outcomes == []
            mock_clock.jump(0.2)
        peer.close()
    assert "did not answer within 10 s" in outcomes[0].message


# -- the end of an export ----------------------------------------------------------------------------------------------


async def test_the_end_of_an_export_is_seen_when_it_comes_and_not_before(serving: Server) -> None:
    gone = False

    async def wait() -> None:
        nonlocal gone
        await nbd.wait_until_gone(serving.socket, "vda")
        gone = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await until(lambda: serving.connections() == 1, "somebody watches")
        async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
            assert await image.read(0, 4096) == DISK[:4096]
            await wait_all_tasks_blocked()
            assert not gone
            serving.kill()
    assert gone


async def test_an_export_that_is_gone_already_is_not_waited_for(server: Server, mock_clock: MockClock) -> None:
    await nbd.wait_until_gone(server.socket, "vda")
    server.start()
    await nbd.wait_until_gone(server.socket, "no such export")


async def test_who_waits_for_the_end_can_be_cancelled(serving: Server) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nbd.wait_until_gone, serving.socket, "vda")
        await until(lambda: serving.connections() == 1, "somebody watches")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await until(lambda: serving.open_connections() == 0, "the server has seen the end of the connection")


async def test_reads_from_a_server_that_hangs_use_up_no_threads(serving: Server, mock_clock: MockClock) -> None:
    """Where all of trio's threads are taken, no program can be run and libvirt cannot be called: nothing is undone."""
    own, threads = nbd.THREADS.limiter(), trio.to_thread.current_default_thread_limiter()
    outcomes: list[bytes | OSError] = []
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.send(signal.SIGSTOP)
        for _ in range(3 * nbd.CONNECTIONS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_into, outcomes, image)
                await wait_all_tasks_blocked()
                mock_clock.jump(READ_S + 0.1)
        taken = threads.borrowed_tokens
        await until(lambda: own.borrowed_tokens == 0, "the threads of the reads have ended")
        serving.kill()
    assert taken == 0


async def test_a_connection_that_comes_when_nobody_waits_any_more_is_closed(
    serving: Server, mock_clock: MockClock
) -> None:
    outcomes: list[bytes | OSError] = []
    threads = nbd.THREADS.limiter()
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        serving.send(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for _ in range(2):  # the first has the connection that is there
                nursery.start_soon(read_into, outcomes, image)
            await wait_all_tasks_blocked()
            mock_clock.jump(READ_S + 0.1)
        serving.send(signal.SIGCONT)
        await until(lambda: not threads.borrowed_tokens, "the threads have ended")


def test_a_thread_that_outlives_its_run_takes_no_place_of_the_next() -> None:
    go_on = threading.Event()

    def stay(scope: trio.CancelScope) -> None:
        trio.from_thread.run_sync(scope.cancel)
        go_on.wait()

    async def abandon() -> None:
        with trio.CancelScope() as scope:
            await nbd._in_thread(stay, scope)
        assert nbd.THREADS.limiter().borrowed_tokens == 1

    async def places_taken() -> float:
        return nbd.THREADS.limiter().borrowed_tokens

    try:
        trio.run(abandon)
        assert trio.run(places_taken) == 0
    finally:
        go_on.set()


# -- extents -----------------------------------------------------------------------------------------------------------


async def test_nobody_who_only_glances_waits_for_extents_that_take_long(serving: Server, mock_clock: MockClock) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image, trio.open_nursery() as nursery:
        serving.hold_back()
        found: list[int | None] = []

        async def glance() -> None:
            found.append(await image.allocated_bytes())

        nursery.start_soon(glance)
        await wait_all_tasks_blocked()
        assert found == []
        mock_clock.jump(extents.GLANCE_S)
        await wait_all_tasks_blocked()
        assert found == [None]
        await glance()  # while the clock stands still: who comes later waits no more
        assert found == [None, None]
        serving.go_on()
        await image.extents()
        await glance()
        assert found[-1] == len(DISK)


async def test_extents_that_could_not_be_had_are_asked_for_again(serving: Server, mock_clock: MockClock) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image, trio.open_nursery() as nursery:
        serving.hold_back()
        failed = trio.Event()

        async def ask() -> None:
            with pytest.raises(OSError, match="the extents cannot be had"):
                await image.extents()
            failed.set()

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        mock_clock.jump(READ_S + 0.1)
        await failed.wait()
        serving.go_on()
        assert (await image.extents()).data_bytes == len(DISK)


async def test_connections_that_read_past_python_end_with_the_image(serving: Server) -> None:
    async with nbd.opened("vda", serving.socket, "vda", READ_S) as image:
        ways = [way for _ in range(nbd.DIRECT_WAYS) if (way := await image.direct())]
        assert [len(way.sockets) for way in ways] == [nbd.DIRECT_CONNECTIONS] * nbd.DIRECT_WAYS
        assert ways[0].deadline_s == READ_S
        sockets = [socket for way in ways for socket in way.sockets]
        assert len(set(sockets)) == len(sockets), "each has them for itself"
        assert await image.direct() is None, "there are only so many"
        kept = os.dup(sockets[0])
    with socket.socket(fileno=kept) as connection:
        assert connection.recv(1) == b""
    serving.kill()
    with pytest.raises(OSError, match="the snapshot has ended"):
        await image.direct()
