"""An NBD server that lies, hangs and hangs up: reads give the right bytes or EIO, in time, and nothing crashes.

What a server says of the disk itself, its data and which parts are zero, cannot be checked by anybody; all else is.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapmount.errors import UnreachableError
from snapmount.images import nbd

from ..publish.fuse.test_fast_reads import read_direct
from ..rig.libvirtd import wait_for
from ..rig.nbdkit import DISK
from ..rig.scripted_nbd import CONTEXT_ID, Hang, HangUp, Lie, Reply, ScriptedServer, chunk, cookie_of

READ_S = 2.0
IMPATIENT_S = 0.2  # where EIO is as good as the bytes
ENOUGH_S = 30.0
READS = [(0, 4096), (0, 1 << 20), ((1 << 20) - 512, 512), (4095, 8193)]
BOUNDED = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
MOUNT_EXPORT = Path(__file__).parents[2] / "contrib" / "bench" / "mount_export.py"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server of DISK."""
    with (
        tempfile.TemporaryDirectory(prefix="snapmount-test-") as directory,
        ScriptedServer(Path(directory) / "socket", DISK).serving() as serving,
    ):
        yield serving


# -- lies --------------------------------------------------------------------------------------------------------------

Change = Callable[[Reply], bytes]


def flip(place: int, by: int) -> Change:
    """Another byte in the header."""

    def change(reply: Reply) -> bytes:
        wire = bytearray(reply.wire)
        wire[place % len(reply.header)] ^= by
        return bytes(wire)

    return change


def stop_after(count: int, end: type[Hang]) -> Change:
    """Only so many bytes of it."""

    def change(reply: Reply) -> bytes:
        raise end(reply.wire[: count % (len(reply.wire) + 1)])

    return change


def append(junk: bytes) -> Change:
    return lambda reply: reply.wire + junk


def replace(junk: bytes) -> Change:
    return lambda reply: junk


def twice(reply: Reply) -> bytes:
    return reply.wire * 2


def lying(step: str, change: Change, first: int = 0, count: int = 1 << 30, export: str | None = None) -> Lie:
    """Change the replies of that step, from that one on."""

    def lie(reply: Reply) -> bytes:
        is_meant = reply.step == step and export in (None, reply.export)
        return change(reply) if is_meant and first <= reply.number < first + count else reply.wire

    return lie


changes = st.one_of(
    st.builds(flip, st.integers(0, 63), st.integers(1, 255)),
    st.builds(stop_after, st.integers(0, 64) | st.integers(65, 1 << 21), st.sampled_from([Hang, HangUp])),
    st.builds(append, st.binary(min_size=1, max_size=64)),
    st.builds(replace, st.binary(max_size=64)),
    st.just(twice),
)
lies = st.builds(
    lying,
    st.sampled_from(["greeting", "option", "size", "simple", "simple", "simple", "status", "status"]),
    changes,
    st.integers(0, 3),
    st.sampled_from([1, 1 << 30]),
)


# -- by libnbd ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fails_with_eio() -> Iterator[None]:
    """The block may fail so, and not otherwise."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


async def look_at(socket: Path, read_s: float = READ_S) -> int:
    """Read the export and its extents; how many reads gave their bytes.  Anything that is not promised raises."""
    right = 0
    with trio.fail_after(ENOUGH_S):
        try:
            async with nbd.opened("vda", str(socket), "vda", read_s) as image:
                for offset, length in READS * 2:
                    with fails_with_eio():
                        assert bytes(await image.read(offset, length)) == DISK[offset : offset + length]
                        right += 1
                with fails_with_eio():
                    assert (await image.extents()).end == image.size_bytes
        except UnreachableError:
            pass
    return right


@BOUNDED
@given(lie=lies)
def test_whatever_the_server_says_reads_are_right_or_fail_in_time(server: ScriptedServer, lie: Lie) -> None:
    server.lie = lie
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nbd, "CONNECT_S", IMPATIENT_S)
        trio.run(look_at, server.path, IMPATIENT_S)


def test_an_honest_server_is_believed(server: ScriptedServer) -> None:
    assert trio.run(look_at, server.path) == len(READS) * 2


def test_reads_are_answered_by_simple_replies_whose_data_has_no_gaps(server: ScriptedServer) -> None:
    trio.run(look_at, server.path)
    assert (server.sent("read", "vda"), server.sent("simple", "vda")) == (0, len(READS) * 2)


@pytest.mark.parametrize("size", [0, 1, 512, len(DISK) - 1, len(DISK) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_size_that_is_another_at_each_connection_is_noticed(server: ScriptedServer, size: int) -> None:
    def other_size(reply: Reply) -> bytes:
        return reply.wire.replace(struct.pack(">Q", len(DISK)), struct.pack(">Q", size))

    server.lie = lying("size", other_size, first=1)

    async def read_by_a_second_connection() -> None:
        async with nbd.opened("vda", str(server.path), "vda", READ_S) as image:
            with pytest.raises(OSError, match="Errno 5"):
                await image.direct()
            with pytest.raises(OSError, match="Errno 5"):
                await image.extents()

    trio.run(read_by_a_second_connection)


# -- what it says of extents -------------------------------------------------------------------------------------------


def status(*entries: tuple[int, int]) -> Change:
    """These extents, whatever was asked for."""
    told = struct.pack(">I", CONTEXT_ID) + b"".join(struct.pack(">II", *entry) for entry in entries)
    return lambda reply: chunk(cookie_of(reply), 5, told)


def refused(reply: Reply) -> bytes:
    return chunk(cookie_of(reply), 32769, struct.pack(">IH", errno.ENOMEM, 0))


SIZE = len(DISK)


@pytest.mark.parametrize(
    "change",
    [
        status(),
        status((0, 0)),
        status((0, 0), (SIZE, 0)),
        status((SIZE + 1, 0)),
        status((SIZE - 1, 0), (0xFFFFFFFF, 0)),
        status((0xFFFFFFFF, 0xFFFFFFFF)),
        status((SIZE // 2, 0)),
        status((SIZE // 2 + 1, 0)),
        status((1 << 18, 0x80000000), (SIZE - (1 << 18), 1)),
        refused,
        replace(b""),
        stop_after(0, HangUp),
        stop_after(30, Hang),
    ],
)
def test_extents_cover_the_disk_once_or_are_an_error(server: ScriptedServer, change: Change) -> None:
    server.lie = lying("status", change)
    assert trio.run(look_at, server.path) == len(READS) * 2, "reads go on without them"


# -- past Python -------------------------------------------------------------------------------------------------------


def simple(error: int = 0, cookie: int | None = None) -> Change:
    """A reply with another error or cookie."""

    def change(reply: Reply) -> bytes:
        true = cookie_of(reply)
        return struct.pack(">IIQ", 0x67446698, error, true if cookie is None else cookie) + reply.wire[16:]

    return change


ONCE_MORE = "an_answer_of_before"
PAST_PYTHON: dict[str, Change] = {
    **{f"flip{place}": flip(place, 0x41) for place in range(16)},
    "error": simple(error=errno.EPERM),
    "an_error_of_no_meaning": simple(error=0xFFFFFFFF),
    "the_cookie_of_nobody": simple(cookie=0),
    "a_cookie_past_all": simple(cookie=(1 << 64) - 1),
    "twice": twice,
    ONCE_MORE: twice,  # the last answer stands before the next one
    "appended": append(b"\0" * 16),
    "more_data": append(b"x" * 4096),
    "nothing_but_junk": replace(b"\xff" * 5000),
    "closed": stop_after(0, HangUp),
    "closed_in_the_header": stop_after(9, HangUp),
    "closed_in_the_data": stop_after(1000, HangUp),
    "stalled": stop_after(0, Hang),
    "stalled_in_the_header": stop_after(15, Hang),
    "stalled_in_the_data": stop_after(1000, Hang),
    "structured": lambda reply: chunk(cookie_of(reply), 1, bytes(8) + reply.wire[16:]),
}


CONNECTIONS = 6  # of an export whose reads are answered past Python: Python's, that for the extents, and four
ENOUGH = 1000  # for all exports to have so many


@pytest.mark.vm
@pytest.mark.parametrize("count", [1, 1 << 30], ids=["once", "always"])
def test_replies_past_python_that_make_no_sense_cost_no_wrong_byte(server: ScriptedServer, count: int) -> None:
    """One mount with a disk for each lie, which is told once its reads are answered past Python, and then perhaps to
    Python too, which reads on where the extension gives up.
    """
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK):
        pytest.skip("needs root and /dev/fuse")
    told: Counter[str] = Counter()
    earlier: dict[str, bytes] = {}

    def lie(reply: Reply) -> bytes:
        name = reply.export
        before, earlier[name] = earlier.get(name, b""), reply.wire
        is_due = (
            reply.step == "simple"
            and server.sent("size", name) >= CONNECTIONS
            and told[name] < count + (name == ONCE_MORE)
        )
        if not is_due:
            return reply.wire
        told[name] += 1
        if name == ONCE_MORE:
            return (before if told[name] > 1 else b"") + reply.wire
        return PAST_PYTHON[name](reply)

    server.lie = lie
    mountpoint = server.path.parent / "mount"
    mountpoint.mkdir()
    options = ["--read-timeout=1", f"--connections={ENOUGH}"]
    command = [sys.executable, MOUNT_EXPORT, *options, mountpoint, server.path, *PAST_PYTHON]
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: process.poll() is not None or os.path.ismount(mountpoint), "it is mounted")
            with ThreadPoolExecutor(8) as readers:
                last = list(readers.map(lambda name: _read(told, mountpoint, name), PAST_PYTHON))
            assert process.poll() is None
            assert len(os.listdir(mountpoint)) == 3 * len(PAST_PYTHON)
        finally:
            process.terminate()
            process.wait(30)
            assert not os.path.ismount(mountpoint)
    if count == 1:
        assert [name for name, is_right in zip(PAST_PYTHON, last, strict=True) if not is_right] == []


def _read(told: Counter[str], mountpoint: Path, name: str) -> bool:
    """Read until the lie has been told, and then on; whether the last read was right.  None may give other bytes."""
    path = mountpoint / f"{name}.raw"
    offsets = itertools.cycle(range(0, SIZE, 8192))

    def read_one() -> bool:
        offset = next(offsets)
        with fails_with_eio():
            assert read_direct(path, offset, 4096) == DISK[offset : offset + 4096], name
            return True
        return False

    with path.open("rb"):  # from then on it is made fast
        wait_for(lambda: (read_one(), told[name])[1], f"{name} has been read past Python")
        return [read_one() for _ in range(6)][-1]
