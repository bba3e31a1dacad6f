"""What people and programs do to a host while a snapshot lives: the view goes on or ends, and nothing is left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..rig import filesystems, libiscsi, servers, traces, vm
from ..rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm


@pytest.fixture
def small_runtime(writer: vm.VM) -> Iterator[Path]:
    """A runtime directory on a file system of 64 KiB."""
    with filesystems.small_at(traces.RUNTIME, 64):
        yield traces.RUNTIME


def fill_up(directory: Path) -> Path:
    """Leave no room in the file system."""
    path = directory / "fill"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as f:
        while True:
            f.write(bytes(1024))
    return path


def test_a_full_runtime_directory_is_told_and_delete_works_all_the_same(
    writer: vm.VM, mountpoint: Path, small_runtime: Path
) -> None:
    fill = fill_up(small_runtime)
    message = refused(writer.name, mountpoint, code=4)
    assert f"cannot write the runtime record {small_runtime}" in message
    assert "No space left on device" in message
    assert os.listdir(small_runtime) == ["fill"]
    assert not traces.SCRATCH.exists()
    fill.unlink()
    snapmount(writer.name, mountpoint)
    fill = fill_up(small_runtime)
    assert read_direct(mountpoint / "vda.raw")
    snapmount("delete", writer.name)
    assert os.listdir(small_runtime) == ["fill"]
    assert not traces.SCRATCH.exists()
    assert not writer.has_job()


@pytest.mark.skipif(not Path("/usr/sbin/tgtd").exists(), reason="this host lacks tgtd: run contrib/setup --test")
@pytest.mark.parametrize("server", ["lives", "is dead"])
def test_a_full_runtime_directory_keeps_no_luns_from_being_withdrawn(
    writer: vm.VM, small_runtime: Path, server: str
) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{libiscsi.free_port()}", writer.name)
    fill = fill_up(small_runtime)
    if server == "is dead":
        servers.kill(taken)
    snapmount("delete", writer.name)
    assert os.listdir(small_runtime) == [fill.name]
    assert list(traces.tgtds()) == []
    assert not traces.SCRATCH.exists()
    assert not writer.has_job()


def test_a_read_only_runtime_directory_is_told_and_nothing_is_forgotten(
    writer: vm.VM, mountpoint: Path, small_runtime: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken, and_standby=True)  # the standby would open the log
    with filesystems.read_only(small_runtime):
        assert "Read-only file system" in refused("delete", writer.name, code=8)
        assert snapmount_json("list")[0]["id"] == taken["id"]
        assert "Read-only file system" in refused(writer.name, mountpoint, code=4)
    assert f"snapshot {taken['id']} could not be re-attached" in snapmount("recover").stdout
    assert os.listdir(small_runtime) == []
    assert not traces.SCRATCH.exists()


def test_scratch_files_that_are_deleted_by_hand_are_missed_by_nobody(writer: vm.VM, mountpoint: Path) -> None:
    """QEMU has them open."""
    taken = snapmount_json(writer.name, mountpoint)
    before = digests(mountpoint)
    shutil.rmtree(taken["scratch"]["directory"])
    writer.keeps_writing(200)
    assert digests(mountpoint) == before
    snapmount("delete", writer.name)
    assert traces.found() == []


def digests(mountpoint: Path) -> list[str]:
    return [hashlib.sha256(read_direct(mountpoint / f"{disk}.raw")).hexdigest() for disk in ("vda", "vdb")]


def test_a_disk_is_not_unplugged_and_a_vm_that_is_undefined_keeps_its_snapshot(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount(own_vm.name, mountpoint)
    before = digests(mountpoint)
    assert own_vm.virsh_fails("detach-disk", "--live", own_vm.name, "vdb"), "libvirt refuses: a job uses it"
    own_vm.virsh("undefine", own_vm.name)
    assert digests(mountpoint) == before
    assert snapmount_json("list")[0]["state"] == "active"
    own_vm.virsh("destroy", own_vm.name)
    ends = [f"{own_vm.name} {end}" for end in ("is gone", "was destroyed")]  # libvirt forgets it a moment later
    wait_for(lambda: snapmount_json("list")[0]["reason"] in ends, "list says why")
    snapmount("delete", own_vm.name)


def test_a_vm_is_neither_saved_nor_migrated_while_its_snapshot_lives(own_vm: vm.VM, mountpoint: Path) -> None:
    """libvirt refuses: the backup job holds the domain.  It waits for the job before, 30 s, for all three at once."""
    snapmount(own_vm.name, mountpoint)
    before = digests(mountpoint)
    to = own_vm.directory / "saved"
    words = [["save", own_vm.name, str(to)], ["managedsave", own_vm.name], ["migrate", own_vm.name, own_vm.uri]]
    commands = [subprocess.Popen(["virsh", "-q", *each], stderr=subprocess.PIPE, text=True) for each in words]
    for command in commands:
        _, said = command.communicate(timeout=vm.BOOT_S)
        assert command.returncode == 1
        assert "cannot acquire state change lock" in said
    assert own_vm.state() == "running"
    own_vm.keeps_writing(200)
    assert own_vm.write_errors() == 0
    assert digests(mountpoint) == before
    assert snapmount_json("list")[0]["state"] == "active"
    snapmount("delete", own_vm.name)
    own_vm.virsh("save", own_vm.name, str(to))
    assert own_vm.state() == "shut off"
    assert traces.found() == []


def test_a_view_that_is_lazily_unmounted_ends_with_its_last_reader(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    with (mountpoint / "vda.raw").open("rb", buffering=0) as reader:
        subprocess.run(["umount", "-l", mountpoint], check=True)
        assert os.listdir(mountpoint) == []
        assert len(reader.read(4096)) == 4096
        assert snapmount_json("list")[0]["state"] == "active"
    wait_for(lambda: traces.found() == [], "all has ended")


def test_a_clock_that_is_stepped_back_makes_no_age_negative_and_moves_no_expiry(
    writer: vm.VM, mountpoint: Path
) -> None:
    """For the command that looks; the server and the record go by the clock that nobody steps."""
    if not shutil.which("faketime"):
        pytest.skip("this host lacks faketime: run contrib/setup --test")
    snapmount("--expire", "2h", writer.name, mountpoint)
    yesterday = ["faketime", "--exclude-monotonic", "-f", "-1d", SNAPMOUNT]
    shown = subprocess.run([*yesterday, "show", writer.name], capture_output=True, text=True, check=True).stdout
    assert ", 0s ago" in shown
    assert re.search(r"^expires +in 1h 59m", shown, re.MULTILINE)
    assert snapmount_json("show", writer.name)["state"] == "active"
    snapmount("delete", writer.name)
    assert traces.found() == []
