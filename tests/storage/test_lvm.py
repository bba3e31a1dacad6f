"""The driver for logical volumes: its parsers here, the rest by the checks of lvm_checks.py under a stock kernel."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.core.units import GIB, KIB, MIB
from snapmount.errors import SpaceError, StateError
from snapmount.storage import devicemapper, lvm, lvmreport, lvmroom, thindelta
from snapmount.storage.devicemapper import Pool, Thin, Used
from snapmount.storage.lvmreport import Group, Volume
from snapmount.storage.lvmroom import OwnRoom
from snapmount.storage.shapes import LvmKept

from ..rig import checks


@pytest.mark.vm
@pytest.mark.parametrize("check", checks.of("storage/lvm_checks.py"), ids=str)
def test_under_a_stock_kernel(report: checks.Report, check: checks.Check) -> None:
    report(check)


ROW = {
    "vg_name": "vg", "vg_uuid": "Ab1234-0000-0000-0000-0000-0000-000001", "vg_free": "1073741824",
    "vg_extent_size": "4194304", "vg_permissions": "writeable", "vg_exported": "", "vg_partial": "",
    "vg_clustered": "", "vg_shared": "", "lv_name": "vm1", "lv_uuid": "Cd1234-0000-0000-0000-0000-0000-000002",
    "lv_size": "10737418240", "lv_layout": "thin,sparse", "lv_role": "public,origin,thinorigin", "lv_merging": "",
    "lv_tags": "a,b", "pool_lv": "pool", "origin": "",
}  # fmt: skip


def report_of(**changes: str) -> bytes:
    return json.dumps({"report": [{"lv": [{**ROW, **changes}]}]}).encode()


def volume_of(**changes: str) -> Volume:
    (volume,) = lvmreport.parse(report_of(**changes))
    return volume


def test_a_report_is_read() -> None:
    assert volume_of() == Volume(
        Group("vg", GIB, 4 * MIB, None),
        "vm1",
        f"LVM-Ab1234{1:026}Cd1234{2:026}",
        10 * GIB,
        frozenset({"thin", "sparse"}),
        frozenset({"public", "origin", "thinorigin"}),
        False,
        frozenset({"a", "b"}),
        "pool",
        "",
    )
    assert volume_of().is_thin
    assert not volume_of(lv_layout="linear").is_thin


@pytest.mark.parametrize("text", [b"", b"[]", b'{"report": [{"lv": [{}]}]}', b'{"report": 1}', report_of(lv_size="x")])
def test_what_is_no_report_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        lvmreport.parse(text)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"lv_layout": "linear", "lv_role": "public", "pool_lv": ""}, None),
        ({"lv_layout": "raid,raid1", "lv_role": "public"}, None),
        ({"lv_role": "public,origin,thickorigin", "lv_layout": "linear"}, None),
        ({"vg_shared": "shared"}, "lies in the volume group vg, which is shared with other hosts"),
        ({"vg_exported": "exported"}, "lies in the volume group vg, which is exported"),
        ({"vg_partial": "partial"}, "lies in the volume group vg, which lacks some of its physical volumes"),
        ({"vg_permissions": "read-only"}, "lies in the volume group vg, which is read-only"),
        ({"lv_layout": "thin,pool", "lv_role": "private"}, "vg/vm1 is a pool of other logical volumes"),
        ({"lv_layout": "linear", "lv_role": "private,raid,image"}, "vg/vm1 is a part of another logical volume"),
        ({"lv_role": "public,snapshot,thicksnapshot"}, "vg/vm1 is itself a snapshot, of the kind of which"),
        ({"lv_merging": "merging"}, "vg/vm1 is being merged"),
        ({"lv_layout": "mirror", "lv_role": "public"}, "vg/vm1 is a mirror of the old kind"),
    ],
)
def test_which_volumes_are_refused(changes: dict[str, str], why: str | None) -> None:
    refusal = lvmreport.refusal(volume_of(**changes))
    assert refusal is None if why is None else (refusal or "").startswith(why)


# -- the room of a classic snapshot ------------------------------------------------------------------------------------


def plain(size_bytes: int, free_bytes: int) -> Volume:
    return volume_of(lv_layout="linear", lv_size=str(size_bytes), vg_free=str(free_bytes))


def test_a_classic_snapshot_has_room_for_all_if_half_of_what_is_free_suffices() -> None:
    room = lvmroom.judged(plain(10 * GIB, 100 * GIB))
    assert 10 * GIB < room.size_bytes < 10.3 * GIB
    assert room.is_enough


def test_it_takes_half_of_what_is_free_otherwise_but_a_tenth_of_the_volume_at_least() -> None:
    assert lvmroom.judged(plain(10 * GIB, 8 * GIB)) == OwnRoom(4 * GIB, False)
    assert lvmroom.judged(plain(10 * GIB, 8 * GIB), 2) == OwnRoom(2 * GIB, False)
    assert lvmroom.judged(plain(10 * GIB, GIB + 8 * MIB)) == OwnRoom(GIB, False)


def test_too_little_room_is_told_with_what_is_needed() -> None:
    with pytest.raises(SpaceError, match=r"vg has 1020 MiB free, and that of vg/vm1 needs 1 GiB at least") as told:
        lvmroom.judged(plain(10 * GIB, GIB - 4 * MIB))
    assert told.value.remedy == "vgextend vg DEVICE"
    with pytest.raises(SpaceError, match="800 MiB free for each of 2 snapshots"):
        lvmroom.judged(plain(10 * GIB, 1600 * MIB), 2)


@given(st.integers(1, 1 << 44), st.integers(0, 1 << 46), st.integers(1, 9))
def test_the_rooms_of_all_snapshots_fit_into_what_is_free(size: int, free: int, snapshots: int) -> None:
    try:
        room = lvmroom.judged(plain(size, free), snapshots).size_bytes
    except SpaceError:
        assert free // snapshots < size // 10 + 24 * MIB
        return
    assert room * snapshots <= free
    assert room % (4 * MIB) == 0
    assert room >= min(size // 10, 16 * MIB)


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_device_of_a_volume_has_doubled_hyphens() -> None:
    assert devicemapper.name("my-vg", "vm-1-root") == "my--vg-vm--1--root"


def test_a_snapshot_is_named_after_its_volume() -> None:
    assert lvm.snapshot_name(volume_of(), "snapmount-3f2a91bc") == "vm1-snapmount-3f2a91bc"


@given(st.text("ab-", max_size=122), st.text("ab-_", max_size=122), st.sampled_from(["vg", "a-b" * 15]))
def test_no_name_is_longer_than_device_mapper_allows(first: str, second: str, group: str) -> None:
    names = []
    for number, name in enumerate((first, second)):
        volume = volume_of(vg_name=group, lv_name=f"v{name}", lv_uuid=f"Cd1234-0000-0000-0000-0000-0000-00000{number}")
        names.append(lvm.snapshot_name(volume, "snapmount-3f2a91bc"))
        assert len(devicemapper.name(group, names[-1]) + "-cow") <= 127
        assert names[-1].startswith("v")
    assert len(set(names)) == 2 or first == second


def test_a_group_whose_name_leaves_no_room_for_that_of_a_snapshot_is_refused() -> None:
    with pytest.raises(StateError, match=r"the name of the volume group a+ is too long for snapshots in it"):
        lvm.snapshot_name(volume_of(vg_name="a" * 120), "snapmount-3f2a91bc")


# -- device mapper -----------------------------------------------------------------------------------------------------


def test_a_classic_snapshot_s_status_is_read() -> None:
    assert devicemapper.snapshot_used(["snapshot", "64/32768", "16"]) == Used(32 * KIB, 16 * MIB)
    for lost in ("Invalid", "Overflow", "Unknown", "Merge failed"):
        assert devicemapper.snapshot_used(["snapshot", *lost.split()]) is None


def test_a_thin_pool_s_status_is_read() -> None:
    words = ["thin-pool", "3", "20/1024", "512/1024", "-", "rw", "discard_passdown", "queue_if_no_space", "-", "1024"]
    assert devicemapper.pool(words) == Pool("rw", Used(80 * KIB, 4 * MIB), 512, 1024, False)
    words[4:6] = ["77", "out_of_data_space"]
    assert devicemapper.pool(words) == Pool("out_of_data_space", Used(80 * KIB, 4 * MIB), 512, 1024, True)
    assert devicemapper.pool(["thin-pool", "Fail"]) is None


def test_tables_of_thin_pools_and_volumes_are_read() -> None:
    assert devicemapper.pool_block_bytes(["thin-pool", "253:1", "253:2", "128", "0", "0"]) == 64 * KIB
    assert devicemapper.thin(["thin", "253:3", "7"]) == Thin(7, False)
    assert devicemapper.thin(["thin", "253:3", "7", "253:9"]) == Thin(7, True)
    for read in (devicemapper.pool_block_bytes, devicemapper.thin):
        with pytest.raises(ValueError, match="is no thin"):
            read(["linear", "8:1", "2048"])


# -- what differs ------------------------------------------------------------------------------------------------------

DELTA = b"""<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="1024">
  <diff left="1" right="2">
    <different begin="0" length="2"/>
    <same begin="2" length="10"/>
    <left_only begin="12" length="3"/>
    <right_only begin="20" length="4"/>
  </diff>
</superblock>
"""


def test_what_thin_delta_prints_is_read_up_to_the_disk_s_end() -> None:
    unit = 64 * KIB
    found = thindelta.parse(DELTA, 21 * unit + 512, unallocated_is_zero=True)
    discarded = Extent(12 * unit, 3 * unit, HOLE | ZERO)
    assert found == [Extent(0, 2 * unit, 0), discarded, Extent(20 * unit, unit + 512, 0)]
    assert thindelta.parse(DELTA, 20 * unit, unallocated_is_zero=False)[1:] == [replace(discarded, flags=0)]


@pytest.mark.parametrize("text", [b"", b"<superblock/>", b"<a data_block_size='8'/>", DELTA.replace(b"begin", b"x")])
def test_what_is_no_delta_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="thin_delta has printed"):
        thindelta.parse(text, GIB, unallocated_is_zero=True)


def test_the_command_that_takes_a_snapshot() -> None:
    snapshot = LvmKept("vg", "vm1-snapmount-3f2a91bc", "vm1", "pool", 0, False, "snapmount-3f2a91bc", 0, 0)
    common = ["lvcreate", "--yes", "--snapshot", "--permission", "r"]
    ours = ["--addtag", "snapmount-3f2a91bc", "--name", "vm1-snapmount-3f2a91bc", "vg/vm1"]
    assert lvm.creation(snapshot) == [*common, "--setactivationskip", "y", "--noudevsync", *ours]
    classic = replace(snapshot, pool="", room_bytes=8 * MIB)
    assert lvm.creation(classic) == [*common, "--size", "8388608b", *ours]
