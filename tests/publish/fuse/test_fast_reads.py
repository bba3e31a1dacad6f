"""Reads of mounted disks that are answered past Python: the right bytes, or an error for that read alone.

The mount is that of contrib/bench/mount_export.py: snapmount's own, without a VM.  The server is QEMU's, or nbdkit
where it shall misbehave.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import signal
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ...rig.libvirtd import wait_for
from ...rig.nbdkit import DISK, Server

pytestmark = pytest.mark.vm
MIB = 1 << 20
PART = 256 << 10  # larger reads are split
MOST_AT_ONCE = 32
MOUNT_EXPORT = Path(__file__).parents[3] / "contrib" / "bench" / "mount_export.py"
RESIDENT_MAX = 80 * MIB


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK):
        pytest.skip("needs root and /dev/fuse")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not tmp_path, which may be too long for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="snapmount-test-") as name:
        yield Path(name)


@contextlib.contextmanager
def mounted(
    directory: Path, socket: Path | str, *exports: str, read_timeout_s: float = 1, times: int = 1
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The exports in a mount, and the process that serves it."""
    mountpoint = directory / "mount"
    mountpoint.mkdir()
    options = [f"--read-timeout={read_timeout_s}", f"--times={times}"]
    command = [sys.executable, MOUNT_EXPORT, *options, mountpoint, socket, *exports]
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: process.poll() is not None or os.path.ismount(mountpoint), "it is mounted")
            yield mountpoint, process
        finally:
            process.terminate()
            process.wait(30)
            assert not os.path.ismount(mountpoint)


@contextlib.contextmanager
def qemu(*images: Path) -> Iterator[Path]:
    """QEMU's NBD server, with an export of each image, of its name; yields the socket.  It takes as many connections as
    that of a VM.
    """
    socket = images[0].parent / "qemu.sock"
    command = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=100"]
    for image in images:
        command += ["--blockdev", f"raw,node-name={image.name},read-only=on,file.driver=file,file.filename={image}"]
        command += ["--export", f"nbd,id={image.name},node-name={image.name},name={image.name}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            wait_for(socket.exists, "QEMU listens")
            yield socket
        finally:
            process.terminate()


@pytest.fixture
def serving(directory: Path) -> Iterator[Server]:
    """nbdkit with DISK."""
    server = Server(directory)
    server.start()
    yield server
    server.stop()


def read_direct(path: Path, offset: int, length: int) -> bytes:
    """Past the page cache: it is asked of the server now.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            return buffer[: os.preadv(descriptor, [buffer], offset)]
    finally:
        os.close(descriptor)


def until_fast(path: Path, server: Server, offset: int = 0) -> None:
    """Wait until the file's reads, at that offset, are answered past Python, which would not split them."""

    def is_split() -> bool:
        before = server.reads()
        read_direct(path, offset, 2 * PART)
        return server.reads() - before == 2

    wait_for(is_split, "reads are answered past Python")


def assert_eio(read: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        read()
    assert caught.value.errno == errno.EIO


def make_patchy(path: Path, data_max: int, hole_max: int) -> bytes:
    """An image with data and holes up to that long whose borders lie anywhere, and a size that no page divides."""
    generator = random.Random(data_max)
    size = 24 * MIB + 3 * 512
    content = bytearray(size)
    with path.open("wb") as f:
        f.truncate(size)
        offset = 0
        while offset < size:
            data = generator.randbytes(min(size - offset, generator.randrange(1, data_max)))
            f.seek(offset)
            f.write(data)
            content[offset : offset + len(data)] = data
            offset += len(data) + generator.randrange(1, hole_max)
    return bytes(content)


@pytest.mark.parametrize(
    ("data_max", "hole_max"), [(MIB, 3 * MIB), (20_000, 300_000), (5000, 20_000)], ids=["large", "mixed", "small"]
)
def test_reads_of_all_kinds_give_the_image_s_bytes(directory: Path, data_max: int, hole_max: int) -> None:
    content = make_patchy(directory / "vda", data_max, hole_max)
    with qemu(directory / "vda") as socket, mounted(directory, socket, "vda") as (mount, _):
        disk = mount / "vda.raw"
        assert disk.read_bytes() == content
        with disk.open("rb", buffering=0) as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert mapped[5 * MIB - 3 : 7 * MIB + 5] == content[5 * MIB - 3 : 7 * MIB + 5]

        def read_some(seed: int) -> None:
            generator = random.Random(seed)
            for _ in range(200):
                offset = generator.randrange(0, len(content) // 4096) * 4096
                length = 4096 * generator.choice((1, 1, 2, 31, 32, 33, 256))
                assert read_direct(disk, offset, length) == content[offset : offset + length], (offset, length)

        with ThreadPoolExecutor(8) as readers:
            list(readers.map(read_some, range(8)))


def test_a_read_at_the_end_is_short_and_past_it_empty(directory: Path, serving: Server) -> None:
    with mounted(directory, serving.socket, "vda") as (mount, _):
        disk = mount / "vda.raw"
        until_fast(disk, serving)
        assert read_direct(disk, len(DISK) - 4096, 8192) == DISK[-4096:]
        assert read_direct(disk, len(DISK), 4096) == b""


def test_a_large_request_reaches_pyfuse3_whole(directory: Path, serving: Server) -> None:
    """libfuse leaves it in a pipe, where it may make one of 2 MiB: as root with CAP_SYS_RESOURCE."""
    size = 8000
    with mounted(directory, serving.socket, "vda") as (mount, _):
        disk = mount / "vda.raw"
        until_fast(disk, serving)
        with disk.open("rb") as f, pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(f, 1 << 30 | size << 16 | ord("x") << 8, bytearray(size))
        assert read_direct(disk, 0, MIB) == DISK


def test_an_error_of_the_server_is_an_error_of_that_read_alone(directory: Path, serving: Server) -> None:
    with mounted(directory, serving.socket, "vda") as (mount, _):
        disk = mount / "vda.raw"
        until_fast(disk, serving)
        with serving.failing():
            assert_eio(lambda: read_direct(disk, 0, 4096))
            assert_eio(lambda: read_direct(disk, 0, MIB))
        assert read_direct(disk, 0, MIB) == DISK
        until_fast(disk, serving)


def test_reads_that_stall_hold_up_no_others(directory: Path) -> None:
    server = Server(directory)
    server.start(half_stalled=True)
    with (
        mounted(directory, server.socket, "vda", read_timeout_s=600) as (mount, _),
        ThreadPoolExecutor(4) as readers,
    ):
        disk = mount / "vda.raw"
        until_fast(disk, server)
        before = server.reads()
        stalled = [readers.submit(read_direct, disk, len(DISK) // 2 + n * 4096, 4096) for n in range(4)]
        wait_for(lambda: server.reads() == before + 4, "the reads have reached the server")
        assert read_direct(disk, 8192, 4096) == DISK[8192 : 8192 + 4096]
        assert not any(each.done() for each in stalled)
        server.kill()
        for each in stalled:
            assert_eio(each.result)


def test_stalled_reads_fail_at_their_deadline_also_more_than_there_is_room_for(
    directory: Path, serving: Server
) -> None:
    with mounted(directory, serving.socket, "vda") as (mount, _):
        disk = mount / "vda.raw"
        until_fast(disk, serving)
        serving.hold_back()
        count = 2 * MOST_AT_ONCE
        with ThreadPoolExecutor(count) as readers:
            stalled = [readers.submit(read_direct, disk, n * 4096, 4096) for n in range(count)]
            assert (mount / "vda.raw").stat().st_size == len(DISK), "the mount answers all the time"
            for each in stalled:
                assert_eio(each.result)
        serving.go_on()
        assert read_direct(disk, 0, MIB) == DISK
        until_fast(disk, serving)


def test_when_the_server_is_gone_reads_fail_also_those_of_holes(directory: Path) -> None:
    server = Server(directory)
    hole = 1 * MIB
    server.start(disk=DISK + bytes(hole))
    (directory / "disk").write_bytes(DISK)
    os.truncate(directory / "disk", len(DISK) + hole)
    with mounted(directory, server.socket, "vda") as (mount, _):
        disk = mount / "vda.raw"
        until_fast(disk, server)
        assert read_direct(disk, len(DISK), hole) == bytes(hole)
        server.hold_back()
        with ThreadPoolExecutor(1) as readers:
            before = server.reads()
            waiting = readers.submit(read_direct, disk, 0, 4096)
            wait_for(lambda: server.reads() == before + 1, "the read has reached the server")
            server.kill()
            assert_eio(waiting.result)
        assert_eio(lambda: read_direct(disk, 0, 4096))
        assert disk.stat().st_size == len(DISK) + hole


def test_an_unmount_ends_reads_that_stall(directory: Path, serving: Server) -> None:
    with mounted(directory, serving.socket, "vda") as (mount, process), ThreadPoolExecutor(1) as readers:
        disk = mount / "vda.raw"
        until_fast(disk, serving)
        serving.hold_back()
        before = serving.reads()
        waiting = readers.submit(read_direct, disk, 0, 4096)
        wait_for(lambda: serving.reads() > before, "the read has reached the server")
        process.send_signal(signal.SIGTERM)
        assert_eio(waiting.result)
        assert process.wait(10) == 0
        serving.go_on()  # so that it can be stopped


def test_another_mount_of_one_process_has_fast_reads_too(directory: Path, serving: Server) -> None:
    times = 3
    with mounted(directory, serving.socket, "vda", times=times) as (mount, process):
        disk = mount / "vda.raw"
        for _ in range(times):
            wait_for(lambda: os.path.ismount(mount), "it is mounted")
            until_fast(disk, serving)
            with ThreadPoolExecutor(8) as readers:
                assert all(readers.map(lambda _: read_direct(disk, 0, MIB) == DISK, range(32)))
            subprocess.run(["umount", mount], check=True)
        assert process.wait(30) == 0


def test_of_too_many_disks_the_last_are_read_by_python() -> None:
    """An error other than OSError would end the mount."""
    code = """if True:
        from array import array
        from snapmount.publish.fuse.extension import extension
        for inode in range(2, 2 + 256):
            extension.add_disk(inode, 512, array("Q", [0]), bytearray(1), None, (0,), 1.0)
        try:
            extension.add_disk(1000, 512, array("Q", [0]), bytearray(1), None, (0,), 1.0)
        except OSError:
            print("too many")"""
    assert subprocess.check_output([sys.executable, "-c", code]) == b"too many\n"


def test_all_of_many_disks_are_read_at_once(directory: Path) -> None:
    """There are connections for each, if few."""
    names = [f"vd{letter}" for letter in string.ascii_lowercase]
    content = {name: random.Random(name).randbytes(MIB) for name in names}
    for name in names:
        (directory / name).write_bytes(content[name])
    with qemu(*(directory / name for name in names)) as socket, mounted(directory, socket, *names) as (mount, _):

        def read_all(name: str) -> bool:
            return all(read_direct(mount / f"{name}.raw", 0, MIB) == content[name] for _ in range(5))

        with ThreadPoolExecutor(len(names) * 2) as readers:
            assert all(readers.map(read_all, names * 2))


def test_eight_readers_of_two_disks_need_little_memory(directory: Path) -> None:
    size = 64 * MIB
    content = random.Random(2).randbytes(size)
    disks = [directory / "vda", directory / "vdb"]
    for disk in disks:
        disk.write_bytes(content)
    with qemu(*disks) as socket, mounted(directory, socket, "vda", "vdb") as (mount, process):

        def read_all(name: str) -> None:
            for offset in range(0, size, MIB):
                assert read_direct(mount / name, offset, MIB) == content[offset : offset + MIB]

        with ThreadPoolExecutor(8) as readers:
            list(readers.map(read_all, ["vda.raw", "vdb.raw"] * 4))
        status = Path(f"/proc/{process.pid}/status").read_text()
        most = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        assert most <= RESIDENT_MAX
