"""What the kernel could not write to a disk is heard of by who holds the file open."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.core.units import MIB
from snapmount.sources.pull.scratch import writeback

from ...rig import failing

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system")]


@pytest.fixture
def thin() -> Iterator[Path]:
    with failing.thin_file_system(100, there=16) as directory:
        yield directory


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def assert_lost(descriptor: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
        writeback.check(descriptor)
    assert caught.value.errno in (errno.ENOSPC, errno.EIO), "as the disk below, and the file system, put it"


def test_a_write_that_is_lost_is_told_once_to_each_that_has_the_file_open(thin: Path) -> None:
    file = thin / "file"
    file.touch()
    with opened(file) as one, opened(file) as other:
        writeback.check(one)
        file.write_bytes(bytes([1]) * 24 * MIB)
        failing.sync(thin)
        for each in (one, other):
            assert_lost(each)
            writeback.check(each)


def test_a_lost_write_that_nobody_was_told_of_is_told_to_who_opens_the_file_next(thin: Path) -> None:
    file = thin / "file"
    file.write_bytes(bytes([1]) * 24 * MIB)
    failing.sync(thin)
    with opened(file) as descriptor:
        assert_lost(descriptor)


def test_a_lost_write_of_a_block_device_is_told() -> None:
    with failing.thin_device(40, there=8) as device, opened(device) as one, opened(device, os.O_WRONLY) as other:
        os.pwrite(other, bytes([1]) * 16 * MIB, 0)
        subprocess.run(["sync", device], capture_output=True)
        assert_lost(one)


def test_what_the_kernel_cannot_tell_of_is_no_lost_write() -> None:
    reading, writing = os.pipe()
    writeback.check(reading)
    os.close(reading)
    os.close(writing)
    writeback.check(reading)
