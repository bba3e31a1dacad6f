"""The extents of a file are those that it has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.host import fiemap

from ..rig import clones, filesystems
from ..rig.clones import BLOCK

pytestmark = pytest.mark.vm
MANY = 10_000  # more than one call tells


@pytest.fixture(scope="module", params=["xfs", "btrfs", "ext4"])
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts file systems")
    with filesystems.mounted(400, request.param) as mountpoint:
        yield mountpoint


def test_each_extent_is_told_once_and_where_it_is(directory: Path) -> None:
    path = clones.fragmented(directory / "many", MANY)
    with path.open("rb") as f:
        assert fiemap.count(f.fileno()) == MANY
        assert fiemap.count(f.fileno(), 2 * BLOCK) == 1
        found = list(fiemap.extents(f.fileno()))
    assert [(each.start, each.length) for each in found] == [(2 * n * BLOCK, BLOCK) for n in range(MANY)]
    assert len({each.address for each in found}) == MANY


def test_what_is_only_in_memory_gets_its_blocks_first(directory: Path) -> None:
    path = directory / "new"
    with path.open("wb") as f:
        f.write(b"x" * 100 * BLOCK)
        f.flush()
        assert fiemap.count(f.fileno()) > 0
        found = list(fiemap.extents(f.fileno()))
    assert sum(each.length for each in found if not each.flags & fiemap.UNWRITTEN) == 100 * BLOCK
    assert not any(each.flags & fiemap.VAGUE for each in found)


def test_what_was_allocated_and_not_written_is_told_as_such(directory: Path) -> None:
    path = directory / "allocated"
    with path.open("wb") as f:
        os.posix_fallocate(f.fileno(), 0, 10 * BLOCK)
        assert all(each.flags & fiemap.UNWRITTEN for each in fiemap.extents(f.fileno()))
        assert sum(each.length for each in fiemap.extents(f.fileno())) == 10 * BLOCK


def test_an_empty_file_has_none(directory: Path) -> None:
    path = directory / "empty"
    path.touch()
    with path.open("rb") as f:
        assert fiemap.count(f.fileno()) == 0
        assert list(fiemap.extents(f.fileno())) == []


def test_a_file_system_that_does_not_tell_is_an_error() -> None:
    with Path("/proc/self/status").open("rb") as f:
        for ask in (fiemap.count, lambda number: list(fiemap.extents(number))):
            with pytest.raises(OSError, match=r"not supported|Inappropriate ioctl") as caught:
                ask(f.fileno())
            assert caught.value.errno in (errno.EOPNOTSUPP, errno.ENOTTY)
