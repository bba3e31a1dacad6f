"""Snapshots of which a hook takes a part: the one to begin with, of contrib/hooks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...rig import clones, filesystems, prefix, traces, vm
from ...rig.command import read_direct, snapmount, snapmount_json

pytestmark = pytest.mark.vm
SEED = 11
WRITES = f"snapmount.seed={SEED} snapmount.pause=1000"
STORAGE = ("--source", "storage", "--max-pause", "20")  # a busy host without KVM takes its time
EXAMPLE = Path(__file__).parents[3] / "contrib" / "hooks" / "example"


@pytest.fixture(scope="module")
def images(libvirt: None) -> Iterator[Path]:
    """A directory on XFS."""
    with filesystems.mounted(400, "xfs") as directory:
        yield directory


@pytest.fixture(scope="module")
def shared(images: Path) -> Iterator[vm.VM]:
    """A VM that writes all the time."""
    disks = [vm.Disk("vda", "raw", place=images), vm.Disk("vdb", "qcow2", place=images)]
    with vm.running(f"{vm.PREFIX}-hooked", disks, command_line=WRITES) as running:
        yield running


@pytest.fixture
def hooked(shared: vm.VM, images: Path, clean: None) -> Iterator[vm.VM]:
    """That VM: whatever the test did, the guest has had no error and goes on writing, and no clone is left."""
    yield shared
    shared.keeps_writing()
    assert shared.write_errors() == 0
    assert clones.places(images) == []
    assert [path.name for path in images.iterdir() if "snapmount-" in path.suffix] == []


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    """The example, installed."""
    return Path(shutil.copy(EXAMPLE, tmp_path / "hook"))


def test_what_a_hook_and_a_driver_have_taken_is_of_one_moment(hooked: vm.VM, hook: Path, mountpoint: Path) -> None:
    taken = snapmount_json(*STORAGE, "--storage", f"vda={hook}", hooked.name, mountpoint)
    assert taken["source"] == "storage"
    first = [read_direct(mountpoint / name) for name in ("vda.raw", "vdb.raw")]
    writes = prefix.prove(SEED, first)
    hooked.keeps_writing(500)
    assert hooked.written() > writes, "the guest went on"
    assert [read_direct(mountpoint / name) for name in ("vda.raw", "vdb.raw")] == first
    snapmount("delete", hooked.name)
    assert traces.found() == []


def edited(hook: Path, take: str) -> None:
    """Let the hook do that first when it takes a snapshot."""
    hook.write_text(hook.read_text().replace('if verb == "take":\n', f'if verb == "take":\n    {take}\n'))


def test_a_hook_that_fails_leaves_no_snapshot_and_tells_why(hooked: vm.VM, hook: Path, mountpoint: Path) -> None:
    edited(hook, 'subprocess.run(["cp", "--no-such-option"], check=True)')
    done = snapmount(*STORAGE, "--storage", f"vda={hook}", hooked.name, mountpoint, check=False)
    assert done.returncode == 4
    assert f"the hook {hook} take has failed (exit status 1)" in done.stderr
    assert "cp: unrecognized option" in done.stderr
    assert traces.found() == []


def test_a_hook_whose_snapmount_is_killed_is_ended_and_undone(hooked: vm.VM, hook: Path, mountpoint: Path) -> None:
    told = hook.with_suffix(".pid")
    edited(
        hook,
        f'print(os.getpid(), file=open("{told}", "w")); os.kill(os.getppid(), 9); subprocess.run(["sleep", "1000"])',
    )
    done = snapmount(*STORAGE, "--storage", f"vda={hook}", hooked.name, mountpoint, check=False)
    assert done.returncode == 1
    assert "the server process has died before the view was ready: signal 9; nothing was left behind" in done.stderr
    assert hooked.state() == "running"
    assert not Path(f"/proc/{told.read_text().strip()}").exists()
    assert traces.found() == []
