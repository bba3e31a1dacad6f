"""What a snapshot will be is decided before anything is made: its disks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import plan
from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.leftout import LeftOut
from snapmount.core.plan import Choice, Selection
from snapmount.errors import NotFoundError, StateError

from ..strategies import PROPERTY, disk_names

VDA = DiskDefinition("vda", "disk", "file", "raw", "/images/vda.img")
VDB = DiskDefinition("vdb", "disk", "block", "qcow2", "/dev/vg/vdb")
CDROM = DiskDefinition("sda", "cdrom", "file", "raw", "/images/install.iso")
FLOPPY = DiskDefinition("fda", "floppy", "file", "raw", "/images/floppy.img")
EMPTY = DiskDefinition("vdc", "disk", "file", "raw", "")
ATTACHED = DiskDefinition("vdd", "disk", "file", "raw", "/mnt/vda.raw", "ua-snapmount-84b8ec7e-vda")
DIRECTORY = DiskDefinition("vde", "disk", "dir", "fat", "/srv", is_readonly=True)
TRANSIENT = DiskDefinition("vdf", "disk", "file", "qcow2", "/images/vdf.TRANSIENT-vm1", is_transient=True)
ALL = (VDA, VDB, CDROM, FLOPPY, EMPTY)
COMMAND = ("snapmount", "vm 1", "/mnt")


def select(disks: Sequence[DiskDefinition], only: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Selection:
    return plan.select("vm1", disks, Choice(only, exclude, COMMAND))


def test_all_disks_are_chosen_but_removable_and_empty_ones() -> None:
    selection = select(ALL, (), ())
    assert selection.chosen == (VDA, VDB)
    assert selection.left_out == (LeftOut("sda", "CD-ROM"), LeftOut("fda", "floppy"), LeftOut("vdc", "empty drive"))


def test_a_chosen_disk_leaves_the_others_out() -> None:
    selection = select((VDA, VDB, CDROM), ("vdb",), ())
    assert selection.chosen == (VDB,)
    assert selection.left_out == (LeftOut("vda", "not chosen"), LeftOut("sda", "CD-ROM"))


def test_an_excluded_disk_is_left_out() -> None:
    selection = select((VDA, VDB), (), ("vda",))
    assert selection.chosen == (VDB,)
    assert selection.left_out == (LeftOut("vda", "excluded"),)


def test_disks_keep_the_vm_s_order_whatever_the_user_s() -> None:
    assert select((VDA, VDB), ("vdb", "vda"), ()).chosen == (VDA, VDB)


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
        selection = select(disks, (), tuple(exclude))
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
        select((VDA, VDB), only, exclude)


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (CDROM, "CD-ROM"),
        (FLOPPY, "floppy"),
        (EMPTY, "empty drive"),
        (DIRECTORY, "a directory of the host"),
        (replace(DIRECTORY, kind="volume"), "a directory of the host"),
        (TRANSIENT, "transient: what the guest writes to it is thrown away"),
        (ATTACHED, "attached, from snapshot 84b8ec7e"),
    ],
    ids=["CD-ROM", "floppy", "empty", "directory", "volume", "transient", "attached"],
)
def test_a_disk_that_cannot_be_chosen_says_why(disk: DiskDefinition, why: str) -> None:
    with pytest.raises(StateError, match=f"{disk.name} cannot be part of a snapshot: {why}"):
        select((VDA, disk), (disk.name,), ())
    assert select((VDA, disk)).left_out == (LeftOut(disk.name, why),)


def test_a_disk_cannot_be_both_chosen_and_excluded() -> None:
    with pytest.raises(StateError, match="vda cannot be part of a snapshot: excluded"):
        select((VDA, VDB), ("vda",), ("vda",))


def test_no_disk_left_is_an_error_that_names_the_disks() -> None:
    with pytest.raises(NotFoundError, match=r"no disk is left .* the VM has vda, sda"):
        select((VDA, CDROM), (), ("vda",))
    with pytest.raises(NotFoundError, match="the VM has no disks"):
        select((), (), ())


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "a b", "vda\n"])
def test_a_disk_name_that_cannot_be_a_file_name_is_refused(name: str) -> None:
    with pytest.raises(StateError, match="cannot be a file name"):
        select((replace(VDA, name=name),), (), ())
