"""Disks of which a backup job cannot keep the moment are refused; without input or output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from snapmount.core import plan
from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.plan import Choice, Selection
from snapmount.errors import StateError
from snapmount.sources.pull import refusals

VDA = DiskDefinition("vda", "disk", "file", "raw", "/images/vda.img")
VDB = DiskDefinition("vdb", "disk", "block", "qcow2", "/dev/vg/vdb")
CDROM = DiskDefinition("sda", "cdrom", "file", "raw", "/images/install.iso")
LUN = DiskDefinition("sdb", "lun", "block", "raw", "/dev/sdb")
THREADED = replace(VDB, has_iothread=True)
SHARED = replace(VDB, is_shareable=True)
COMMAND = ("snapmount", "vm 1", "/mnt")


def select(disks: Sequence[DiskDefinition], only: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Selection:
    choice = Choice(only, exclude, COMMAND)
    selection = plan.select("vm1", disks, choice)
    plan.check_bypass("vm1", selection.chosen, choice)
    return selection


@pytest.mark.parametrize("version", [None, (7, 2, 22), (8, 2, 2)])
def test_disks_with_iothreads_are_refused_where_qemu_would_crash(version: tuple[int, ...] | None) -> None:
    choice = Choice(command=("snapmount", "boot", "vm1"))
    refusals.check_iothreads("vm1", (VDA, VDB), choice, version)
    with pytest.raises(StateError, match=r"^vm1: vdb uses an iothread, and the VM's QEMU .* would crash") as caught:
        refusals.check_iothreads("vm1", (VDA, THREADED), choice, version)
    assert (caught.value.remedy or "").startswith("snapmount boot vm1 --exclude-disk vdb")


def test_disks_with_iothreads_that_leave_no_other_need_a_vm_without_them() -> None:
    with pytest.raises(StateError, match=r"^vm1: vda and vdb use iothreads, and the VM's QEMU") as caught:
        refusals.check_iothreads("vm1", (replace(VDA, has_iothread=True), THREADED), Choice(), None)
    assert (caught.value.remedy or "").startswith("virsh edit vm1 ")


@pytest.mark.parametrize("version", [(8, 2, 3), (9, 0, 0), (10, 0, 8)])
def test_disks_with_iothreads_are_chosen_where_qemu_can(version: tuple[int, ...]) -> None:
    refusals.check_iothreads("vm1", (THREADED,), Choice(), version)


BYPASSED = {
    "lun": (LUN, r"is passed through to the guest \(device='lun'\)"),
    "vhostuser": (replace(VDB, kind="vhostuser"), r"is served by another process \(vhostuser\)"),
    "vhostvdpa": (replace(VDB, kind="vhostvdpa"), r"is served by another process \(vhostvdpa\)"),
    "shareable": (SHARED, r"may be shared with other VMs and hosts \(<shareable/>\)"),
}


@pytest.mark.parametrize("kind", BYPASSED)
def test_a_disk_that_can_be_written_past_qemu_must_be_excluded_by_name(kind: str) -> None:
    disk, what = BYPASSED[kind]
    with pytest.raises(StateError, match=f"^vm1: {disk.name} {what}: writes that do not pass .* QEMU would") as caught:
        select((VDA, disk))
    assert caught.value.remedy == f"snapmount 'vm 1' /mnt --exclude-disk {disk.name}"
    assert select((VDA, disk), (), (disk.name,)).chosen == (VDA,)
    assert select((VDA, disk), ("vda",), ()).chosen == (VDA,)


def test_all_disks_that_must_be_excluded_are_told_at_once_with_those_that_are_already() -> None:
    vdz = replace(VDA, name="vdz")
    with pytest.raises(StateError, match=r"sdb is passed through .*; vdb may be shared") as caught:
        select((VDA, LUN, SHARED, vdz), (), ("vdz",))
    assert caught.value.remedy == "snapmount 'vm 1' /mnt --exclude-disk vdz --exclude-disk sdb --exclude-disk vdb"
    assert select((VDA, LUN, SHARED, vdz), (), ("vdz", "sdb", "vdb")).chosen == (VDA,)


def test_of_disks_that_were_chosen_those_that_can_be_are_proposed() -> None:
    with pytest.raises(StateError) as caught:
        select((VDA, LUN, CDROM), ("vda", "sdb"))
    assert caught.value.remedy == "snapmount 'vm 1' /mnt --disk vda"


def test_no_command_is_proposed_that_would_leave_no_disk() -> None:
    with pytest.raises(StateError) as caught:
        select((LUN, CDROM))
    assert caught.value.remedy is None
    with pytest.raises(StateError) as caught:
        select((SHARED,))
    assert (caught.value.remedy or "").startswith("virsh edit vm1 ")


def test_a_shareable_disk_that_the_guest_only_reads_is_chosen() -> None:
    assert select((VDA, replace(SHARED, is_readonly=True))).chosen == (VDA, replace(SHARED, is_readonly=True))
