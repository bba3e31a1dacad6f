"""What a snapshot will be is decided before anything is made: its disks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import plan
from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.plan import LeftOut
from snapmount.errors import NotFoundError, StateError

from .strategies import PROPERTY, disk_names

VDA = DiskDefinition("vda", "disk", "file", "raw", "/images/vda.img")
VDB = DiskDefinition("vdb", "disk", "block", "qcow2", "/dev/vg/vdb")
CDROM = DiskDefinition("sda", "cdrom", "file", "raw", "/images/install.iso")
FLOPPY = DiskDefinition("fda", "floppy", "file", "raw", "/images/floppy.img")
EMPTY = DiskDefinition("vdc", "disk", "file", "raw", "")
ATTACHED = DiskDefinition("vdd", "disk", "file", "raw", "/mnt/vda.raw", "ua-snapmount-84b8ec7e-vda")
LUN = DiskDefinition("sdb", "lun", "block", "raw", "/dev/sdb")
ALL = (VDA, VDB, CDROM, FLOPPY, EMPTY)


def test_all_disks_are_chosen_but_removable_and_empty_ones() -> None:
    selection = plan.select("vm1", ALL, (), ())
    assert selection.chosen == (VDA, VDB)
    assert selection.left_out == (LeftOut("sda", "CD-ROM"), LeftOut("fda", "floppy"), LeftOut("vdc", "empty drive"))


def test_a_chosen_disk_leaves_the_others_out() -> None:
    selection = plan.select("vm1", (VDA, VDB, CDROM), ("vdb",), ())
    assert selection.chosen == (VDB,)
    assert selection.left_out == (LeftOut("vda", "not chosen"), LeftOut("sda", "CD-ROM"))


def test_an_excluded_disk_is_left_out() -> None:
    selection = plan.select("vm1", (VDA, VDB), (), ("vda",))
    assert selection.chosen == (VDB,)
    assert selection.left_out == (LeftOut("vda", "excluded"),)


def test_disks_keep_the_vm_s_order_whatever_the_user_s() -> None:
    assert plan.select("vm1", (VDA, VDB), ("vdb", "vda"), ()).chosen == (VDA, VDB)


@pytest.mark.parametrize("version", [None, (7, 2, 22), (8, 2, 2)])
def test_disks_with_iothreads_are_refused_where_qemu_would_crash(version: tuple[int, ...] | None) -> None:
    plan.check_iothreads("vm1", (VDA, VDB), version)
    with pytest.raises(StateError, match=r"vdb uses an iothread, and the VM's QEMU .* would crash") as caught:
        plan.check_iothreads("vm1", (VDA, replace(VDB, has_iothread=True)), version)
    assert "--exclude-disk vdb" in (caught.value.remedy or "")


@pytest.mark.parametrize("version", [(8, 2, 3), (9, 0, 0), (10, 0, 8)])
def test_disks_with_iothreads_are_chosen_where_qemu_can(version: tuple[int, ...]) -> None:
    plan.check_iothreads("vm1", (replace(VDA, has_iothread=True),), version)


@PROPERTY
@given(st.data())
def test_each_disk_is_either_chosen_or_left_out(data: st.DataObject) -> None:
    disks = data.draw(
        st.lists(
            st.builds(
                DiskDefinition,
                name=disk_names,
                device=st.sampled_from(["disk", "cdrom", "floppy"]),
                kind=st.sampled_from(["file", "block", "network"]),
                format=st.just("raw"),
                origin=st.sampled_from(["", "/image"]),
            ),
            unique_by=lambda disk: disk.name,
        )
    )
    known = [disk.name for disk in disks]
    exclude = data.draw(st.lists(st.sampled_from(known)) if known else st.just([]))
    try:
        selection = plan.select("vm1", disks, (), exclude)
    except NotFoundError:
        assert all(disk.device != "disk" or not disk.origin or disk.name in exclude for disk in disks)
        return
    chosen, left_out = [disk.name for disk in selection.chosen], [each.name for each in selection.left_out]
    assert sorted(chosen + left_out) == sorted(known)
    assert [name for name in known if name in chosen] == chosen
    assert not set(chosen) & set(exclude)


@pytest.mark.parametrize(("only", "exclude"), [(("vdz",), ()), ((), ("vdz",)), (("vda", "vdz"), ())])
def test_a_disk_that_the_vm_does_not_have_is_named(only: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    with pytest.raises(NotFoundError, match=r"^vm1: there is no disk 'vdz'; the VM has vda, vdb$"):
        plan.select("vm1", (VDA, VDB), only, exclude)


@pytest.mark.parametrize(
    ("disk", "why"),
    [(CDROM, "CD-ROM"), (FLOPPY, "floppy"), (EMPTY, "empty drive"), (ATTACHED, "attached, from snapshot 84b8ec7e")],
    ids=["CD-ROM", "floppy", "empty", "attached"],
)
def test_a_disk_that_cannot_be_chosen_says_why(disk: DiskDefinition, why: str) -> None:
    with pytest.raises(StateError, match=f"{disk.name} cannot be part of a snapshot: {why}"):
        plan.select("vm1", (VDA, disk), (disk.name,), ())


def test_a_disk_cannot_be_both_chosen_and_excluded() -> None:
    with pytest.raises(StateError, match="vda cannot be part of a snapshot: excluded"):
        plan.select("vm1", (VDA, VDB), ("vda",), ("vda",))


def test_no_disk_left_is_an_error_that_names_the_disks() -> None:
    with pytest.raises(NotFoundError, match=r"no disk is left .* the VM has vda, sda"):
        plan.select("vm1", (VDA, CDROM), (), ("vda",))
    with pytest.raises(NotFoundError, match="the VM has no disks"):
        plan.select("vm1", (), (), ())


@pytest.mark.parametrize(
    ("disk", "what"),
    [
        (LUN, r"device='lun'"),
        (replace(VDB, kind="vhostuser"), r"served by another process \(vhostuser\)"),
        (replace(VDB, kind="vhostvdpa"), r"served by another process \(vhostvdpa\)"),
    ],
    ids=["lun", "vhostuser", "vhostvdpa"],
)
def test_a_disk_whose_writes_bypass_qemu_must_be_excluded_by_name(disk: DiskDefinition, what: str) -> None:
    with pytest.raises(StateError, match=what) as caught:
        plan.select("vm 1", (VDA, disk), (), ())
    assert caught.value.remedy == f"snapmount 'vm 1' MOUNTPOINT --exclude-disk {disk.name}"
    assert plan.select("vm 1", (VDA, disk), (), (disk.name,)).chosen == (VDA,)
    assert plan.select("vm 1", (VDA, disk), ("vda",), ()).chosen == (VDA,)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "a b", "vda\n"])
def test_a_disk_name_that_cannot_be_a_file_name_is_refused(name: str) -> None:
    with pytest.raises(StateError, match="cannot be a file name"):
        plan.select("vm1", (replace(VDA, name=name),), (), ())
