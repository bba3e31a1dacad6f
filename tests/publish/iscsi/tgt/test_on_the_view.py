"""LUNs of a real tgtd whose files are those of a FUSE mount, which may hang."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapmount.core.iscsi import Target
from snapmount.errors import LeftoverError, UnreachableError
from snapmount.publish import iscsi

from ....rig.libiscsi import TOOL_S, output
from ....rig.libvirtd import wait_for
from ....rig.tgtd import CREDENTIALS, LUNS, MIB, SIZE, listens_at, published, refusal, tgtds, withdraw

pytestmark = pytest.mark.vm


class FuseView:
    """A sparse disk behind an NBD server, mounted as snapmount mounts it."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "image.raw"
        with self.image.open("wb") as f:
            f.truncate(SIZE)
            f.write(random.Random(5).randbytes(MIB))
            f.seek(8 * MIB)
            f.write(random.Random(6).randbytes(MIB))
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        self.file = self.mountpoint / "vda.raw"
        nbd_socket = directory / "nbd.sock"
        self.nbd = subprocess.Popen(
            ["qemu-nbd", "-r", "-t", "-f", "raw", "-x", "vda", "-e", "8", "-k", nbd_socket, self.image]
        )
        wait_for(nbd_socket.exists, "qemu-nbd listens")
        script = Path(__file__).parents[4] / "contrib/bench/mount_export.py"
        self.server = subprocess.Popen([sys.executable, script, self.mountpoint, nbd_socket, "vda"])
        wait_for(lambda: self.mountpoint.is_mount() and self.file.exists(), "the view is mounted")

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(TOOL_S)
        self.nbd.kill()
        self.nbd.wait()


@pytest.fixture
def fuse_view(tmp_path: Path) -> Iterator[FuseView]:
    if not os.access("/dev/fuse", os.R_OK):
        pytest.skip("this host lacks /dev/fuse")
    view = FuseView(tmp_path)
    yield view
    view.close()


@pytest.fixture
def single(target: Target) -> Target:
    return replace(target, luns=LUNS[:1])


def test_initiators_see_the_holes_of_the_view(directory: Path, single: Target, fuse_view: FuseView) -> None:
    with published(directory, single, [str(fuse_view.file)]) as view:
        extents = json.loads(output("qemu-img", "map", "-f", "raw", "--output=json", view.url()))
        data = [(extent["start"], extent["length"]) for extent in extents if extent["data"]]
        assert data == [(0, MIB), (8 * MIB, MIB)]
        output("qemu-img", "compare", "-f", "raw", "-F", "raw", str(fuse_view.image), view.url())


def test_a_read_that_is_not_answered_does_not_keep_tgtd(directory: Path, single: Target, fuse_view: FuseView) -> None:
    with published(directory, single, [str(fuse_view.file)]) as view:
        with stopped(fuse_view.nbd):
            reader = subprocess.Popen(["qemu-io", "-r", "-f", "raw", "-c", "read 8M 64k", view.url()])
            wait_for(lambda: "D" in thread_states(view.tgtd), "tgtd waits for the view")
            view.withdraw()
            reader.kill()
            reader.wait()
        assert tgtds(directory) == []


def test_a_hung_view_does_not_hang_withdrawing_which_says_what_is_left_each_time(
    directory: Path, single: Target, fuse_view: FuseView
) -> None:
    """tgtd hangs when it dies: to close its file asks the view."""
    with published(directory, single, [str(fuse_view.file)]) as view:
        tgtd = view.tgtd
        with stopped(fuse_view.server):
            for _ in range(2):
                with pytest.raises(LeftoverError) as left:
                    view.withdraw()
                assert f"pid {tgtd}" in left.value.message
                assert left.value.remedy == f"snapmount delete {directory.name}"
            assert thread_states(tgtd)
        view.withdraw()
        assert not listens_at(single.portals[0].port)


def test_publishing_a_hung_view_ends_at_the_deadline(
    directory: Path, single: Target, fuse_view: FuseView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iscsi, "DEADLINE_S", 1.0)
    with stopped(fuse_view.server):
        refusal(UnreachableError, directory, single, [str(fuse_view.file)], CREDENTIALS)
        assert not listens_at(single.portals[0].port)
    withdraw(directory, single)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process answers nobody."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def thread_states(pid: int) -> list[str]:
    """proc_pid_stat(5), field 3, of each thread; 'D' waits in the kernel."""
    return [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
