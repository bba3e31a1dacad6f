"""Writes of scratch fail though there is room: a thin pool that is full, a quota, a disk that dies.  The snapshot is
given up, and the guest goes on.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..rig import failing, vm
from ..rig.command import assert_reads_fail, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm

SEED = 7
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
def module_vm(thin: Path, emulator: failing.Emulator) -> Iterator[vm.VM]:
    """A VM that was started when the file systems were there, and writes; between tests it is suspended."""
    command_line = f"snapmount.seed={SEED}"
    disks = [vm.Disk("vda", "raw", 40 * MIB)]
    with vm.running(f"{vm.PREFIX}-failures", disks, command_line=command_line, extra_devices=emulator.xml) as running:
        running.keeps_writing(1000)  # most clusters: overwritten holes would take no scratch space
        running.virsh("suspend", running.name)
        yield running


@pytest.fixture
def guest(module_vm: vm.VM, clean: None) -> Iterator[vm.VM]:
    yield module_vm
    module_vm.virsh("suspend", module_vm.name, check=False)


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
    taken = snapmount_json("--scratch-dir", thin, guest.name, mountpoint)
    guest.virsh("resume", guest.name)
    wait_for(lambda: used_bytes(guest) > (THERE + 4) * MIB, "more is overwritten than there is")
    failing.sync(thin)
    file = f"{taken['scratch']['directory']}/vda.qcow2"
    figures = r"[\d.]+ MiB used at \d\d:\d\d:\d\d UTC, growing [\d.]+ [KM]iB/s"
    reason = wait_given_up(guest)
    lost = rf"what was written to {file} is lost: (No space left on device|Input/output error)"
    assert re.fullmatch(rf"scratch space failed \({lost}; {figures}\)", reason), reason
    assert_reads_fail(mountpoint / "vda.raw")
    guest.keeps_writing(100)
    assert guest.write_errors() == 0
    snapmount("delete", guest.name)


def test_a_snapshot_is_given_up_when_its_scratch_device_has_lost_writes(guest: vm.VM, mountpoint: Path) -> None:
    with failing.thin_device(120, THERE) as device:
        snapmount("--scratch-device", f"vda={device}", guest.name, mountpoint)
        guest.virsh("resume", guest.name)
        wait_for(lambda: used_bytes(guest) > (THERE + 4) * MIB, "more is overwritten than there is")
        subprocess.run(["sync", device], capture_output=True)
        assert f"what was written to {device} is lost: Input/output error" in wait_given_up(guest)
        assert_reads_fail(mountpoint / "vda.raw")
        guest.keeps_writing(100)
        assert guest.write_errors() == 0
        snapmount("delete", guest.name)
