"""Writes of scratch fail though there is room: a thin pool that is full, a quota, a disk that dies.  The snapshot is
given up, and the guest goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..rig import failing, vm
from ..rig.command import assert_reads_fail, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm

SEED = 7
QUOTA = 80  # MiB
MIB = 1 << 20
THERE = 12  # MiB of a thin device that are there; the guest overwrites more


@pytest.fixture(scope="module")
def thin(libvirt: None) -> Iterator[Path]:
    """A file system on a thin device."""
    with failing.thin_file_system(300, THERE) as directory:
        yield directory


@pytest.fixture(scope="module")
def emulator(libvirt: None) -> Iterator[failing.Emulator]:
    with failing.emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def limited(libvirt: None) -> Iterator[Path]:
    """A directory with a quota."""
    with failing.with_quota(QUOTA) as directory:
        yield directory


@pytest.fixture(scope="module")
def module_vm(thin: Path, limited: Path, emulator: failing.Emulator) -> Iterator[vm.VM]:
    """A VM that was started when the file systems were there, and writes; any error of its vdb pauses it."""
    with tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-", dir=vm.IMAGES) as name:
        Path(name).chmod(0o755)
        image = vm.make_image(Path(name), vm.Disk("vdb", size=16 * MIB))
        devices = (
            f"<disk type='file'><driver name='qemu' type='raw' error_policy='stop'/><source file='{image}'/>"
            f"<target dev='vdb' bus='virtio'/></disk>{emulator.xml}"
        )
        disks, command_line = [vm.Disk("vda", size=40 * MIB)], f"snapmount.seed={SEED}"
        with vm.running(f"{vm.PREFIX}-failures", disks, command_line=command_line, extra_devices=devices) as running:
            running.keeps_writing(1500)  # many clusters: overwritten holes would take no scratch space
            running.virsh("suspend", running.name)
            yield running


@pytest.fixture
def erring_guest(module_vm: vm.VM, clean: None) -> Iterator[vm.VM]:
    """That VM, suspended: the snapshot is taken before anything is overwritten.  Whatever happens to that, its guest
    goes on, without an error from then on.
    """
    yield module_vm
    errors = module_vm.write_errors()
    module_vm.keeps_writing(100)
    module_vm.virsh("suspend", module_vm.name)
    assert module_vm.write_errors() == errors


@pytest.fixture
def guest(erring_guest: vm.VM) -> Iterator[vm.VM]:
    """The same; its guest has one error at most, of the write that was under way."""
    errors = erring_guest.write_errors()
    yield erring_guest
    assert erring_guest.write_errors() <= errors + 1


def used_bytes(guest: vm.VM) -> int:
    return int(snapmount_json("show", guest.name)["scratch"]["used_bytes"])


def wait_given_up(guest: vm.VM) -> str:
    """The reason."""
    wait_for(lambda: snapmount_json("show", guest.name)["state"] == "gave up", "the snapshot is given up")
    wait_for(lambda: not guest.has_job(), "the job is ended")
    return str(snapmount_json("show", guest.name)["reason"])


def test_a_snapshot_is_given_up_when_the_disk_below_its_scratch_has_lost_writes(
    guest: vm.VM, mountpoint: Path, thin: Path
) -> None:
    """Neither QEMU nor the guest sees an error: what they have written is in the page cache."""
    taken = snapmount_json("--disk", "vda", "--scratch-dir", thin, guest.name, mountpoint)
    guest.virsh("resume", guest.name)
    wait_for(lambda: used_bytes(guest) > (THERE + 4) * MIB, "more is overwritten than there is")
    failing.sync(thin)
    file = f"{taken['scratch']['directory']}/vda.qcow2"
    figures = r"[\d.]+ MiB used at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, growing [\d.]+ [KM]iB/s"
    reason = wait_given_up(guest)
    lost = rf"what was written to {file} is lost: (No space left on device|Input/output error)"
    assert re.fullmatch(rf"scratch space failed \({lost}; {figures}\)", reason), reason
    assert_reads_fail(mountpoint / "vda.raw")
    snapmount("delete", guest.name)


def test_a_snapshot_is_given_up_when_its_scratch_device_has_lost_writes(guest: vm.VM, mountpoint: Path) -> None:
    with failing.thin_device(120, THERE) as device:
        snapmount("--disk", "vda", "--scratch-device", f"vda={device}", guest.name, mountpoint)
        guest.virsh("resume", guest.name)
        wait_for(lambda: used_bytes(guest) > (THERE + 4) * MIB, "more is overwritten than there is")
        subprocess.run(["sync", device], capture_output=True)
        assert f"what was written to {device} is lost: Input/output error" in wait_given_up(guest)
        assert_reads_fail(mountpoint / "vda.raw")
        snapmount("delete", guest.name)


def test_a_snapshot_is_given_up_whose_scratch_finds_no_space_though_its_file_system_shows_some(
    guest: vm.VM, mountpoint: Path, emulator: failing.Emulator
) -> None:
    snapmount("--disk", "vda", guest.name, mountpoint)
    errors = guest.write_errors()
    with emulator.refusing(errno.ENOSPC):
        guest.virsh("resume", guest.name)
        assert "scratch space failed (writes find no space, though there seems to be some; " in wait_given_up(guest)
        wait_for(lambda: guest.state() == "running", "the guest goes on")
        guest.keeps_writing(100)
        assert guest.write_errors() == errors
        snapmount("delete", guest.name)


def test_a_guest_that_another_error_of_scratch_has_paused_is_freed_by_delete(
    guest: vm.VM, mountpoint: Path, emulator: failing.Emulator
) -> None:
    taken = snapmount_json("--disk", "vdb", guest.name, mountpoint)
    errors = guest.write_errors()
    with emulator.refusing(errno.EIO):
        guest.virsh("resume", guest.name)
        log = Path(taken["server"]["log"])
        wait_for(lambda: "paused once more because a read or write failed" in log.read_text(), "it is paused")
        assert guest.virsh("domstate", "--reason", guest.name).strip() == "paused (I/O error)"
        snapmount("delete", guest.name)
        guest.keeps_writing(100)
    assert guest.write_errors() == errors


@contextlib.contextmanager
def used_up(limited: Path, leave: int) -> Iterator[None]:
    """Somebody else uses the quota, but for so many MiB."""
    file = limited / "somebody-else"
    with file.open("wb") as f:
        os.posix_fallocate(f.fileno(), 0, (QUOTA - leave) * MIB)
    yield
    file.unlink()
    failing.sync(limited)  # btrfs counts what is freed when it is


def test_a_snapshot_is_given_up_when_its_scratch_meets_a_quota(
    erring_guest: vm.VM, mountpoint: Path, limited: Path
) -> None:
    """QEMU pauses guests for a lack of space only: this one sees errors until then, and no more after that."""
    guest = erring_guest
    taken = snapmount_json("--disk", "vda", "--scratch-dir", limited, guest.name, mountpoint)
    directory = taken["scratch"]["directory"]
    with used_up(limited, leave=4):
        guest.virsh("resume", guest.name)
        reason = wait_given_up(guest)
        assert f"scratch space failed (QEMU cannot write to {directory}: Disk quota exceeded; " in reason
        errors = guest.write_errors()
        guest.keeps_writing(100)
        assert guest.write_errors() == errors
        snapmount("delete", guest.name)


def test_a_quota_that_leaves_too_little_is_met_before_the_snapshot_is_taken(
    guest: vm.VM, mountpoint: Path, limited: Path
) -> None:
    with used_up(limited, leave=32):
        message = refused("--scratch-dir", limited, guest.name, mountpoint, code=5)
        assert "it cannot have 64 MiB there: Disk quota exceeded" in message
    guest.virsh("resume", guest.name)
