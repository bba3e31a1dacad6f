"""Reads of mounted raw files that are answered past Python, through a descriptor: the right bytes, or an error for that
read alone.

A file whose reads stall is one of another mount, whose NBD server (nbdkit) holds back its answers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from ...rig.libvirtd import wait_for
from ...rig.nbdkit import DISK, Server
from . import test_fast_reads
from .test_fast_reads import MIB, MOST_AT_ONCE, assert_eio, make_patchy, read_direct

pytestmark = pytest.mark.vm
MOUNT_FILES = test_fast_reads.MOUNT_EXPORT.with_name("mount_files.py")
directory = test_fast_reads.directory
serving = test_fast_reads.serving


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK):
        pytest.skip("needs root and /dev/fuse")


@contextlib.contextmanager
def mounted(
    directory: Path, *files: Path, read_timeout_s: float = 1, cluster_bytes: int = 64 << 10
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The files in a mount, and the process that serves it."""
    mountpoint = directory / "files"
    mountpoint.mkdir()
    options = [f"--read-timeout={read_timeout_s}", f"--cluster-size={cluster_bytes}"]
    command = [sys.executable, MOUNT_FILES, *options, mountpoint, *files]
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: process.poll() is not None or os.path.ismount(mountpoint), "it is mounted")
            yield mountpoint, process
        finally:
            process.terminate()
            process.wait(30)
            assert not os.path.ismount(mountpoint)


@contextlib.contextmanager
def python_stands_still(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """In the block only what needs no Python is answered."""
    process.send_signal(signal.SIGUSR1)
    try:
        yield
    finally:
        process.send_signal(signal.SIGUSR2)


def until_fast(path: Path, process: subprocess.Popen[bytes], offset: int = 0) -> None:
    """Wait until the file's reads are answered past Python, at that offset."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)  # Python answers that

    def is_fast() -> bool:
        with mmap.mmap(-1, 4096) as buffer:
            with python_stands_still(process):
                reading = reader.submit(os.preadv, descriptor, [buffer], offset)
                done, _ = wait([reading], 0.3)
            return reading.result() == 4096 and bool(done)

    try:
        with ThreadPoolExecutor(1) as reader:
            wait_for(is_fast, "reads are answered past Python")
    finally:
        os.close(descriptor)


def drop(file: Path) -> None:
    """Let the kernel forget the file's pages."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def threads(process: subprocess.Popen[bytes]) -> list[str]:
    return [task.read_text().strip() for task in Path(f"/proc/{process.pid}/task").glob("*/comm")]


@pytest.mark.parametrize(
    ("data_max", "hole_max"), [(MIB, 3 * MIB), (20_000, 300_000), (5000, 20_000)], ids=["large", "mixed", "small"]
)
def test_reads_of_all_kinds_give_the_file_s_bytes(directory: Path, data_max: int, hole_max: int) -> None:
    image = directory / "vda"
    content = make_patchy(image, data_max, hole_max) + b"end"
    with image.open("ab") as f:
        f.write(b"end")
        os.fsync(f.fileno())  # pages that are not written cannot be dropped
    content += bytes(-len(content) % 512)
    with mounted(directory, image) as (mount, process):
        disk = mount / "vda.raw"
        until_fast(disk, process)
        assert disk.read_bytes() == content

        def read_some(seed: int) -> None:
            generator = random.Random(seed)
            for _ in range(100):
                offset = generator.randrange(0, -(-len(content) // 4096)) * 4096
                length = 4096 * generator.choice((1, 1, 2, 31, 32, 33, 256))
                if generator.randrange(2):
                    drop(image)
                assert read_direct(disk, offset, length) == content[offset : offset + length], (offset, length)

        with ThreadPoolExecutor(8) as readers:
            list(readers.map(read_some, range(8)))
        assert "snapmount-pread" in threads(process)


def test_a_file_that_has_become_shorter_is_an_error_and_no_zeros(directory: Path) -> None:
    (directory / "vda").write_bytes(DISK)
    with mounted(directory, directory / "vda") as (mount, process):
        disk = mount / "vda.raw"
        until_fast(disk, process)
        os.truncate(directory / "vda", len(DISK) // 2)
        assert_eio(lambda: read_direct(disk, len(DISK) // 2, 4096))
        assert read_direct(disk, 0, 4096) == DISK[:4096]


def test_once_the_image_is_closed_no_read_is_answered_past_python_either(directory: Path) -> None:
    """What is in the file then may be of another moment."""
    (directory / "vda").write_bytes(DISK)
    with mounted(directory, directory / "vda") as (mount, process):
        disk = mount / "vda.raw"
        until_fast(disk, process)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: str(directory / "vda") not in opened(process), "its descriptors are closed")
        assert_eio(lambda: read_direct(disk, 0, 4096))


def opened(process: subprocess.Popen[bytes]) -> list[str]:
    return [os.readlink(each) for each in Path(f"/proc/{process.pid}/fd").iterdir() if os.path.lexists(each)]


def test_stalled_reads_fail_at_their_deadline_and_hold_up_no_other_file(directory: Path, serving: Server) -> None:
    (directory / "other").write_bytes(DISK)
    with (
        test_fast_reads.mounted(directory, serving.socket, "vda", read_timeout_s=600) as (below, _),
        mounted(directory, below / "vda.raw", directory / "other") as (mount, process),
    ):
        disk, other = mount / "vda.raw.raw", mount / "other.raw"
        until_fast(disk, process)
        until_fast(other, process)
        with serving_nothing(serving, below):
            count = 2 * MOST_AT_ONCE
            with ThreadPoolExecutor(count) as readers:
                stalled = [readers.submit(read_direct, disk, n * 4096, 4096) for n in range(count)]
                assert read_direct(other, 8192, 4096) == DISK[8192 : 8192 + 4096]
                for each in stalled:
                    assert_eio(each.result)
        assert read_direct(disk, 0, MIB) == DISK


def test_an_unmount_ends_reads_that_stall(directory: Path, serving: Server) -> None:
    with (
        test_fast_reads.mounted(directory, serving.socket, "vda", read_timeout_s=600) as (below, _),
        mounted(directory, below / "vda.raw", read_timeout_s=600) as (mount, process),
        ThreadPoolExecutor(1) as readers,
    ):
        disk = mount / "vda.raw.raw"
        until_fast(disk, process)
        with serving_nothing(serving, below):
            before = serving.reads()
            waiting = readers.submit(read_direct, disk, 8192, 4096)
            wait_for(lambda: serving.reads() > before, "the read has reached the server")
            process.send_signal(signal.SIGTERM)
            assert_eio(waiting.result)
            assert process.wait(10) == 0


@contextlib.contextmanager
def serving_nothing(serving: Server, below: Path) -> Iterator[None]:
    """Reads of the mount below stall, also of what was in memory."""
    drop(below / "vda.raw")
    serving.hold_back()
    try:
        yield
    finally:
        serving.go_on()
