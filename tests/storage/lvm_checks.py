"""What the driver for logical volumes must do, with lvm2 and device mapper.  Run by test_lvm.py in a VM.

udev runs there, with lvm2's own rules.  Programs are slow to start: few commands, small disks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.core.units import KIB, MIB
from snapmount.core.user import User
from snapmount.doctor import vm as doctor_vm
from snapmount.errors import LeftoverError, StateError
from snapmount.host import execution, programs
from snapmount.storage import devicemapper, lvm, lvmcommands, thindelta
from snapmount.storage.driver import Clone, Driver, Task

T = TypeVar("T")

GROUP = "snapmount-test"
GUEST_GROUP = "snapmount-test-of-a-guest"
BLOCK = 64 * KIB  # of the pool
SIZE = 8 * MIB
READER = User(65534, 65534, ())
SLOW_S = 600.0
DRIVER: Driver = lvm
SETTINGS = "activation { monitoring = 0 retry_deactivation = 0 }\n"  # no dmeventd; what is in use stays in use


def run(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    return trio.run(function, *arguments)


def lvm2(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A volume group with a thin pool and, in each kind of volume, a guest's own volume group."""
    directory = tmp_path_factory.mktemp("lvm")
    disk = directory / "disk"
    with pytest.MonkeyPatch.context() as patch:
        for module, deadline in ((lvmcommands, "LOOK_S"), (lvmcommands, "CHANGE_S"), (devicemapper, "LOOK_S")):
            patch.setattr(module, deadline, SLOW_S)
        patch.setenv("LVM_SYSTEM_DIR", str(directory))
        patch.setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
        (directory / "lvm.conf").write_text(f'{SETTINGS}global/locking_dir = "{directory}/lock"\n')
        with disk.open("wb") as f:
            f.truncate(128 * MIB)
        for module_name in ("loop", "dm-snapshot", "dm-thin-pool"):
            subprocess.run(["modprobe", module_name], check=True)
        loop = lvm2("losetup", "--find", "--show", str(disk)).strip()
        lvm2("vgcreate", "--physicalextentsize", "1m", GROUP, loop)
        pool = ["--thinpool", "pool", "--size", "32m", "--chunksize", "64k", "--poolmetadatasize", "2m"]
        lvm2("lvcreate", "--yes", *pool, "--virtualsize", f"{SIZE}b", "--name", "thin", GROUP)
        lvm2("lvcreate", "--yes", "--size", f"{SIZE}b", "--name", "plain-1", GROUP)
        yield
        left = lvm2("lvs", "--noheadings", "--options", "lv_name,lv_tags", GROUP).split()
        lvm2("vgremove", "--yes", GROUP)
        lvm2("losetup", "--detach", loop)
        assert sorted(left) == ["plain-1", "pool", "thin"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not [name for name in os.listdir("/dev/mapper") if "snapmount--3f2a91b" in name]


def origin_of(name: str) -> str:
    return os.path.realpath(f"/dev/{GROUP}/{name}")


def planned(name: str, snapshot_id: str = "3f2a91bc") -> Clone:
    (offer,) = run(DRIVER.plan, Task(snapshot_id, [origin_of(name)], READER))
    assert 0 < offer.pause_s < SLOW_S
    return offer.clone


@contextlib.contextmanager
def taken(name: str, snapshot_id: str = "3f2a91bc", **kept: Any) -> Iterator[Clone]:
    """A snapshot that is active."""
    clone = planned(name, snapshot_id)
    clone = replace(clone, kept={**clone.kept, **kept})
    try:
        run(DRIVER.prepare, clone)
        run(DRIVER.create, clone)
        yield run(DRIVER.activate, clone)
    finally:
        run(DRIVER.remove, clone)


def write(name: str, offset: int, data: bytes) -> None:
    """As a guest does, whose writes go past the host's cache."""
    with Path(origin_of(name)).open("r+b", buffering=0) as disk:
        disk.seek(offset)
        disk.write(data)
        os.fsync(disk.fileno())


def content(path: str) -> bytes:
    return Path(path).read_bytes()


@pytest.mark.parametrize(
    ("name", "places"), [("thin", [f"the thin pool {GROUP}/pool", f"the metadata of {GROUP}/pool"]), ("plain-1", [])]
)
def test_a_snapshot_keeps_the_bytes_of_its_moment_and_leaves_the_guest_s_volume_group_alone(
    name: str, places: list[str]
) -> None:
    origin = origin_of(name)
    assert run(DRIVER.why_not, origin) is None
    lvm2("vgcreate", "--config", "devices/scan_lvs=1", GUEST_GROUP, origin)
    write(name, 4 * MIB, random.Random(1).randbytes(MIB))
    before = content(origin)
    with taken(name) as clone:
        write(name, 4 * MIB + 512, bytes(MIB))
        (path,) = clone.frozen
        assert path == f"/dev/{GROUP}/{name}-snapmount-3f2a91bc"
        assert clone.of(origin) == path
        assert content(path) == before != content(origin)
        assert run(DRIVER.activate, clone) == clone
        assert run(DRIVER.why_lost, clone) is None
        assert [room.place for room in run(DRIVER.rooms, clone)] == places
        status = os.stat(path)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (READER.uid, READER.gid, 0o440)
        with Path(path).open("r+b", buffering=0) as disk, pytest.raises(PermissionError):
            disk.write(bytes(512))
        assert lvm2("vgs", "--noheadings", "--options", "vg_name").split() == [GROUP]
        assert DRIVER.by_hand(clone) == [f"lvremove --yes {GROUP}/{name}-snapmount-3f2a91bc"]
        is_refused = name != "thin"
        assert ("is itself a snapshot" in (run(DRIVER.why_not, path) or "")) is is_refused
    run(DRIVER.remove, clone)  # once more
    with pytest.raises(StateError, match="there no more"):
        run(DRIVER.activate, clone)
    assert run(DRIVER.why_lost, clone) == f"the snapshot {GROUP}/{name}-snapmount-3f2a91bc is not active any more"
    subprocess.run(["wipefs", "--all", "--quiet", origin], check=True)


def test_a_classic_snapshot_that_is_full_is_lost() -> None:
    with taken("plain-1", room_bytes=MIB, is_enough=False) as clone:
        (room,) = run(DRIVER.rooms, clone)
        assert room.total_bytes == MIB
        write("plain-1", 0, bytes(256 * KIB))
        (less,) = run(DRIVER.rooms, clone)
        assert room.free_bytes - less.free_bytes >= 256 * KIB
        assert run(DRIVER.why_lost, clone) is None
        write("plain-1", 0, bytes(2 * MIB))
        assert (run(DRIVER.why_lost, clone) or "").startswith("the guest has overwritten more than the 1 MiB that")
        assert run(DRIVER.rooms, clone)[0].free_bytes == 0
        with pytest.raises(StateError, match="has overwritten more"):
            run(DRIVER.activate, clone)
        with pytest.raises(StateError, match="not thin snapshots of one pool"):
            run(DRIVER.changed, clone, clone, clone.origins[0])


def test_what_differs_between_thin_snapshots_is_told_to_the_block_and_what_the_guest_writes_takes_room() -> None:
    write("thin", 0, random.Random(2).randbytes(8 * BLOCK))
    with taken("thin", "3f2a91b1") as older:
        data, metadata = run(DRIVER.rooms, older)
        assert data.total_bytes == 32 * MIB
        assert 0 < metadata.free_bytes < metadata.total_bytes == 2 * MIB
        write("thin", BLOCK + 512, b"x" * 512)
        write("thin", 20 * BLOCK - 512, b"y" * 1024)
        assert data.free_bytes - run(DRIVER.rooms, older)[0].free_bytes == 3 * BLOCK
        discard = ["blkdiscard", "--offset", str(4 * BLOCK), "--length", str(2 * BLOCK), origin_of("thin")]
        subprocess.run(discard, check=True)
        with taken("thin", "3f2a91b2") as newer:
            found = run(DRIVER.changed, older, newer, older.origins[0])
            assert merged(found) == [
                Extent(BLOCK, BLOCK, 0),
                Extent(4 * BLOCK, 2 * BLOCK, HOLE | ZERO),
                Extent(19 * BLOCK, 2 * BLOCK, 0),
            ]
            assert not holds_metadata()
            # as if we had been killed meanwhile
            lvm2("lvchange", "--addtag", thindelta.TAG, f"{GROUP}/{newer.kept['name']}")
            tell_pool("reserve_metadata_snap")
        assert not holds_metadata()
        tell_pool("reserve_metadata_snap")
        try:
            with pytest.raises(StateError, match="has a metadata snapshot already, which is not ours"):
                run(DRIVER.changed, older, older, older.origins[0])
        finally:
            tell_pool("release_metadata_snap")


def merged(found: Sequence[Extent]) -> list[Extent]:
    """The extents, with neighbours of one kind as one."""
    joined: list[Extent] = []
    for extent in found:
        if joined and (joined[-1].end, joined[-1].flags) == (extent.start, extent.flags):
            joined[-1] = Extent(joined[-1].start, joined[-1].length + extent.length, extent.flags)
        else:
            joined.append(extent)
    return joined


def tell_pool(message: str) -> None:
    lvm2("dmsetup", "message", devicemapper.pool_name(GROUP, "pool"), "0", message)


def holds_metadata() -> bool:
    pool = devicemapper.pool(run(devicemapper.status, devicemapper.pool_name(GROUP, "pool"), "test"))
    assert pool is not None
    return pool.holds_metadata


def test_what_cannot_be_cloned_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(DRIVER.why_not, str(tmp_path)) == "is not a block device"
    assert run(DRIVER.why_not, "/dev/loop0") == "is not a logical volume"
    configuration = tmp_path / "lvm.conf"
    configuration.write_text(f"{SETTINGS}devices/scan_lvs = 1\n")
    monkeypatch.setenv("LVM_SYSTEM_DIR", str(tmp_path))
    assert "scan_lvs=1" in (run(DRIVER.why_not, origin_of("thin")) or "")
    monkeypatch.setattr(execution, "PACKAGES", {"lvs": "lvm2"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(DRIVER.why_not, origin_of("thin")) == "lvs is missing (try: sudo apt-get install lvm2)"
    monkeypatch.setattr(programs, "search_path", lambda: str(tmp_path))
    found = run(doctor_vm.lacking, [DiskDefinition("vda", "disk", "block", "raw", origin_of("thin"))])
    assert [(each.program, each.disks) for each in found] == [("lvs", ("vda",)), ("dmsetup", ("vda",))]


def test_only_what_is_ours_and_nobody_uses_is_removed() -> None:
    with taken("thin") as clone:
        strange = replace(clone, kept={**clone.kept, "tag": "snapmount-00000000"})
        with pytest.raises(LeftoverError, match="lacks the tag snapmount-00000000, so it may not be ours"):
            run(DRIVER.remove, strange)
        with Path(clone.frozen[0]).open("rb"), pytest.raises(LeftoverError, match=r"cannot be removed: .* in use"):
            run(DRIVER.remove, clone)
        assert run(DRIVER.why_lost, clone) is None


def test_taking_one_that_is_given_up_while_another_command_holds_the_lock_leaves_nothing() -> None:
    clone = planned("thin")
    lock = Path(os.environ["LVM_SYSTEM_DIR"], "lock", f"V_{GROUP}")

    async def give_up() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(DRIVER.create, clone)
            while not waits_for(lock):
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run(give_up)
    run(DRIVER.remove, clone)


def waits_for(path: Path) -> bool:
    """Whether somebody waits for the lock of that file: a line with an arrow in proc_locks(5)."""
    inode = path.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in lines)
