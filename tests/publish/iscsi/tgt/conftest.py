"""Fixtures: a target with two LUNs, and the check that nothing is left of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.core.iscsi import Portal, Target

from ....rig.libiscsi import free_port, skip_where_missing
from ....rig.tgtd import LUNS, MIB, Published, published, tgtds


@pytest.fixture(scope="package", autouse=True)
def tools() -> None:
    """What the host must have."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the tests mount")
    skip_where_missing()


@pytest.fixture
def directory() -> Iterator[Path]:
    """The runtime directory of a snapshot; at the end nothing may be left in it, and no tgtd of it."""
    path = Path(tempfile.mkdtemp(prefix="snapmount-test-tgt-", dir="/run"))
    yield path
    left = [entry.name for entry in path.iterdir()], tgtds(path)
    for pid in left[1]:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)
    assert left == ([], [])


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[str]]:
    """Two disks on a read-only mount, as the view is one: random data and holes."""
    generator = random.Random(11)
    disks = tmp_path / "disks, read-only"  # a comma separates tgtd's parameters
    disks.mkdir()
    for lun in LUNS:
        with (disks / f"{lun.disk}.raw").open("wb") as f:
            f.truncate(lun.size_bytes)
            f.write(generator.randbytes(MIB))
            f.seek(5 * MIB)
            f.write(generator.randbytes(2 * MIB))
    subprocess.run(["mount", "--bind", disks, disks], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disks], check=True)
        yield [str(disks / f"{lun.disk}.raw") for lun in LUNS]
    finally:
        subprocess.run(["umount", disks], check=True)


@pytest.fixture
def target() -> Target:
    """A target at a free port, for everyone who has the secret."""
    return Target("iqn.2024-08.internal.snapmount:vm1.0123abcd", (Portal("127.0.0.1", free_port()),), LUNS, ())


@pytest.fixture
def view(directory: Path, target: Target, files: list[str]) -> Iterator[Published]:
    with published(directory, target, files) as it:
        yield it
