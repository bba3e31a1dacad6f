"""Snapshots by storage, of a VM whose disks lie on file systems that can clone them: one moment of all disks, which
outlives the VM; the guest is paused for no longer than was promised, and never left so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ...rig import clones, filesystems, prefix, traces, vm
from ...rig.command import read_direct, snapmount, snapmount_json

pytestmark = pytest.mark.vm
SEED = 7
WRITES = f"snapmount.seed={SEED} snapmount.pause=1000"
FILES = ("vda.raw", "vdb.raw", "vdc.raw")
STORAGE = ("--source", "storage", "--max-pause", "20")  # a busy host without KVM takes its time


@pytest.fixture(scope="module")
def places(libvirt: None) -> Iterator[dict[str, Path]]:
    """Directories on XFS and btrfs."""
    with filesystems.mounted(400, "xfs") as xfs, filesystems.mounted(400, "btrfs") as btrfs:
        yield {"xfs": xfs, "btrfs": btrfs}


@pytest.fixture(scope="module")
def shared(places: dict[str, Path]) -> Iterator[vm.VM]:
    """A VM that writes all the time to disks of both formats on both file systems."""
    disks = [
        vm.Disk("vda", "raw", place=places["xfs"]),
        vm.Disk("vdb", "qcow2", place=places["xfs"]),
        vm.Disk("vdc", "raw", place=places["btrfs"]),
    ]
    with vm.running(f"{vm.PREFIX}-stored", disks, command_line=WRITES) as running:
        yield running


@pytest.fixture
def stored(shared: vm.VM, places: dict[str, Path], clean: None) -> Iterator[vm.VM]:
    """That VM: whatever the test did, the guest has had no error and goes on writing, and no clone is left."""
    yield shared
    shared.keeps_writing()
    assert shared.write_errors() == 0
    assert [path for place in places.values() for path in clones.places(place)] == []


def read_view(mountpoint: Path) -> list[bytes]:
    return [read_direct(mountpoint / name) for name in FILES]


def test_all_disks_on_both_file_systems_are_of_one_moment(stored: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(*STORAGE, stored.name, mountpoint)
    assert taken["source"] == "storage"
    assert 0 < taken["pause_s"] < 20
    first = read_view(mountpoint)
    writes = prefix.prove(SEED, first)
    stored.keeps_writing(500)
    assert stored.written() > writes, "the guest went on"
    assert read_view(mountpoint) == first
    assert not stored.has_job()
    (listed,) = snapmount_json("list")
    assert listed["pause_s"] == taken["pause_s"]
    assert "the VM was paused for" in snapmount("show", stored.name).stdout
    snapmount("delete", stored.name)
    assert traces.found() == []
