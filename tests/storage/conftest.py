"""Fixtures: directories on real file systems."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..rig import clones, filesystems

MIB = 400


def _mounted(kind: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts file systems")
    with filesystems.mounted(MIB, kind) as mountpoint:
        yield mountpoint


@pytest.fixture(scope="session")
def xfs_mount() -> Iterator[Path]:
    yield from _mounted("xfs")


@pytest.fixture(scope="session")
def btrfs_mount() -> Iterator[Path]:
    yield from _mounted("btrfs")


def _directory(mountpoint: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(dir=mountpoint))
    directory.chmod(0o755)
    yield directory
    left = [path for place in (mountpoint, directory) for path in clones.places(place)]
    shutil.rmtree(directory)
    assert left == []


@pytest.fixture
def xfs(xfs_mount: Path) -> Iterator[Path]:
    """An empty directory on XFS; nothing of ours is left in it."""
    yield from _directory(xfs_mount)


@pytest.fixture
def btrfs(btrfs_mount: Path) -> Iterator[Path]:
    """An empty directory on btrfs; nothing of ours is left in it."""
    yield from _directory(btrfs_mount)


@pytest.fixture(params=["xfs", "btrfs"])
def images(request: pytest.FixtureRequest) -> Path:
    """An empty directory on each of the file systems that have reflinks."""
    directory: Path = request.getfixturevalue(request.param)
    return directory
