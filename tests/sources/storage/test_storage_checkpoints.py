"""Checkpoints by storage: clones that are kept, with which later ones are compared, so that raw disks have increments
too.  The VM is shut off, and its images are written by hand: which part of which file differs is all that matters.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from snapmount.records import checkpoints

from ...rig import clones, dying, filesystems, servers, traces, vm
from ...rig.command import SNAPMOUNT, refused, snapmount, snapmount_json, state_of
from ...rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
STORAGE = ("--source", "storage")
SIZE = 16 << 20
KILLS = 6
NONE = "there is no checkpoint yet"
# It keeps a reflink beside each image, and tells where two of them differ byte by byte.
HOOK = """#!/usr/bin/python3 -I
import json, os, subprocess, sys
verb, asked = sys.argv[1], json.load(sys.stdin)
answer, frozen = {}, asked["origin"] + "." + asked.get("name", "")
if verb == "plan":
    answer = {"pause_s": 0.01, "comparable": True}
elif verb == "take":
    subprocess.run(["cp", "--reflink=always", asked["origin"], frozen], check=True)
    os.chmod(frozen, 0o444)
elif verb == "status":
    answer = {"frozen": frozen} if os.path.exists(frozen) else {"lost": "it is gone"}
elif verb == "changed":
    both = [open(asked["origin"] + "." + each, "rb").read() for each in (asked["older"]["name"], asked["name"])]
    starts = [at for at in range(0, len(both[1]), 512) if both[0][at : at + 512] != both[1][at : at + 512]]
    answer = {"extents": [{"start": at, "length": 512, "zero": not any(both[1][at : at + 512])} for at in starts]}
elif verb == "delete" and os.path.exists(frozen):
    os.unlink(frozen)
print(json.dumps(answer))
"""


def fill(path: Path) -> None:
    """Random data in the first half."""
    with path.open("r+b") as f:
        f.write(random.Random(1).randbytes(SIZE // 2))


@pytest.fixture(scope="module")
def places(libvirt: None) -> Iterator[dict[str, Path]]:
    """Directories on XFS and btrfs, by disk; a hook takes the third disk."""
    with filesystems.mounted(400, "xfs") as xfs, filesystems.mounted(400, "btrfs") as btrfs:
        hooked = xfs / "hooked"
        hooked.mkdir(mode=0o755)
        yield {"vda": xfs, "vdb": btrfs, "vdc": hooked}


@pytest.fixture(scope="module")
def shared(places: dict[str, Path]) -> Iterator[vm.VM]:
    """A VM that is shut off, with a raw disk in each."""
    disks = [vm.Disk(name, "raw", SIZE, fill=fill, place=place) for name, place in places.items()]
    with vm.running(f"{vm.PREFIX}-kept", disks, start=False) as off:
        yield off


@pytest.fixture
def off(shared: vm.VM, places: dict[str, Path], clean: None) -> Iterator[vm.VM]:
    """That VM for one test, which begins and ends without checkpoints; then no clone is left."""
    yield shared
    snapmount("checkpoints", shared.name, "--keep", "0")
    wait_for(lambda: not traces.records(), "all have ended")
    assert left(places) == []


@pytest.fixture
def storage(places: dict[str, Path], tmp_path: Path) -> tuple[str, ...]:
    """How a snapshot is asked for: vdc is taken by a hook."""
    hook = tmp_path / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    return (*STORAGE, "--storage", f"vdc={hook}")


def left(places: dict[str, Path]) -> list[str]:
    """The clones that there are, of the hook too."""
    hooked = [path.name for path in places["vdc"].glob("*.snapmount-*")]
    return hooked + [path for place in places.values() for path in clones.places(place)]


def images(places: dict[str, Path]) -> dict[str, Path]:
    return {disk: place / f"{disk}.img" for disk, place in places.items()}


def change(places: dict[str, Path], seed: int) -> None:
    """Write, discard, and write zeros in all disks, as a guest does."""
    chance = random.Random(seed)
    for path in images(places).values():
        clones.scribble(path, seed, writes=20)
        at = chance.randrange(SIZE // 65536) * 65536
        subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -z {at} 64k", path], check=True, capture_output=True)


def dirty(mountpoint: Path, disk: str) -> list[tuple[int, int, bool]]:
    """The dirty extents: where each begins, its length, and whether it is zero."""
    extents = json.loads((mountpoint / f"{disk}.dirty").read_text())
    return [(each["start"], each["length"], each["zero"]) for each in extents]


def assert_restores(older: bytes, newer: bytes, extents: list[tuple[int, int, bool]]) -> None:
    """The older view with the increment is the newer one; and not much more than what differs is dirty."""
    restored = bytearray(older[: len(newer)].ljust(len(newer), b"\0"))
    end = 0
    for start, length, is_zero in extents:
        assert start >= end
        assert length > 0
        end = start + length
        restored[start:end] = bytes(length) if is_zero else newer[start:end]
    assert bytes(restored) == newer


def read(mountpoint: Path, places: Iterable[str]) -> dict[str, bytes]:
    return {disk: (mountpoint / f"{disk}.raw").read_bytes() for disk in places}


def full(shown: dict[str, list[dict[str, str]]]) -> dict[str, str | None]:
    return {disk["name"]: disk["full"] for disk in shown["disks"]}


def names_of(machine: vm.VM) -> list[str]:
    return [each["name"] for each in snapmount_json("checkpoints", machine.name)["checkpoints"]]


def taken(machine: vm.VM, mountpoint: Path, *words: str) -> dict[str, str | None]:
    """Take a snapshot, and end it; why each disk is full."""
    shown = snapmount_json(*words, machine.name, mountpoint)
    snapmount("delete", machine.name)
    return full(shown)


@pytest.mark.sample
def test_each_increment_makes_of_the_view_before_it_the_next_one(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    shown = snapmount_json(*storage, off.name, mountpoint, "--checkpoint", "--since=last")
    assert full(shown) == dict.fromkeys(places, NONE)
    before = read(mountpoint, places)
    assert dirty(mountpoint, "vda")[0][0] == 0, "all of it counts as changed"
    snapmount("delete", off.name)
    for step in range(3):
        change(places, step)
        shown = snapmount_json(*storage, off.name, mountpoint, "--checkpoint", "--since=last")
        assert full(shown) == dict.fromkeys(places), step
        now = read(mountpoint, places)
        for disk in places:
            found = dirty(mountpoint, disk)
            assert_restores(before[disk], now[disk], found)
            assert 0 < sum(length for _, length, _ in found) < SIZE // 2, disk
        snapmount("delete", off.name)
        before = now
        snapmount("checkpoints", off.name, "--keep", "1")
        assert len(left(places)) == 3, "of each storage the clone of the checkpoint that is left"
    snapmount(*storage, off.name, mountpoint, "--since=last")
    assert [dirty(mountpoint, disk) for disk in places] == [[], [], []]
    snapmount("delete", off.name)


@pytest.fixture
def tabled(places: dict[str, Path], clean: None) -> Iterator[vm.VM]:
    """A VM that is shut off, whose disks are qcow2 images, one of which rests on others."""
    disks = [vm.Disk("vda", "qcow2", SIZE, fill=fill, place=places["vda"])]
    disks += [vm.Disk("vdb", "chain", SIZE, fill=fill, place=places["vdb"])]
    with vm.running(f"{vm.PREFIX}-tables", disks, start=False) as off:
        yield off
        snapmount("checkpoints", off.name, "--keep", "0")
        assert left(places) == []
        for place in places.values():
            for image in place.glob("*.qcow2"):
                image.unlink()


def qemu_io(image: Path, *commands: str) -> None:
    words = [word for each in commands for word in ("-c", each)]
    subprocess.run(["qemu-io", "-f", "qcow2", "-d", "unmap", *words, image], check=True, capture_output=True)


def test_qcow2_images_have_increments_by_their_tables(tabled: vm.VM, places: dict[str, Path], mountpoint: Path) -> None:
    tops = {disk: places[disk] / f"{disk}.qcow2" for disk in ("vda", "vdb")}
    assert taken(tabled, mountpoint, *STORAGE, "--checkpoint", "--since=last") == dict.fromkeys(tops, NONE)
    snapmount(*STORAGE, tabled.name, mountpoint, "--since=last")
    before = read(mountpoint, tops)
    assert [dirty(mountpoint, disk) for disk in tops] == [[], []]
    snapmount("delete", tabled.name)
    chance = random.Random(1)
    for step in range(3):
        for image in tops.values():
            where = [chance.randrange(SIZE // 2 >> 9) << 9 for _ in range(3)]
            does = zip(("write -P 9", "write -z", "discard"), where, strict=True)
            qemu_io(image, f"write -P {step + 1} 0 4k", *(f"{do} {at} 100k" for do, at in does))
        shown = snapmount_json(*STORAGE, tabled.name, mountpoint, "--checkpoint", "--since=last")
        assert full(shown) == dict.fromkeys(tops)
        now = read(mountpoint, tops)
        for disk in tops:
            assert_restores(before[disk], now[disk], dirty(mountpoint, disk))
            assert 0 < sum(length for _, length, _ in dirty(mountpoint, disk)) < SIZE // 4
        snapmount("delete", tabled.name)
        before = now
    qemu_io(tops["vda"], "write -c -P 7 14M 64k")
    middle = places["vdb"] / "vdb.middle.qcow2"
    os.utime(middle)
    assert taken(tabled, mountpoint, *STORAGE, "--since=last") == {
        "vda": "its image has compressed clusters, so what has changed cannot be told from its clones",
        "vdb": "an image that it rests on has been changed since the checkpoint",
    }


def test_what_a_disk_has_grown_by_has_changed(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    taken(off, mountpoint, *storage, "--checkpoint=monday")
    for path in images(places).values():
        os.truncate(path, SIZE + (1 << 20))
    try:
        snapmount(*storage, off.name, mountpoint, "--since=monday")
        for disk in places:
            assert dirty(mountpoint, disk) == [(SIZE, 1 << 20, True)], disk
    finally:
        snapmount("delete", off.name)
        for path in images(places).values():
            os.truncate(path, SIZE)


def test_what_a_file_has_lost_of_its_last_sector_is_zero(off: vm.VM, places: dict[str, Path], mountpoint: Path) -> None:
    """Its disk ends with the sector."""
    paths = [places[disk] / f"{disk}.img" for disk in ("vda", "vdb")]
    for path in paths:
        with path.open("r+b") as f:
            f.seek(SIZE - 512)
            f.write(b"x" * 512)
    taken(off, mountpoint, *STORAGE, "--exclude-disk", "vdc", "--checkpoint=monday")
    for path in paths:
        os.truncate(path, SIZE - 12)
    try:
        snapmount(*STORAGE, off.name, mountpoint, "--exclude-disk", "vdc", "--since=monday")
        for disk in ("vda", "vdb"):
            assert dirty(mountpoint, disk)[-1] == (SIZE - 12, 12, True)
        snapmount("delete", off.name)
    finally:
        for path in paths:
            os.truncate(path, SIZE)


def test_a_snapshot_knows_what_has_changed_also_when_the_checkpoint_and_its_server_have_gone(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    taken(off, mountpoint, *storage, "--checkpoint=monday")
    change(places, 7)
    shown = snapmount_json(*storage, off.name, mountpoint, "--since=monday", "--checkpoint=tuesday")
    first = {disk: dirty(mountpoint, disk) for disk in places}
    snapmount("checkpoints", off.name, "--delete", "monday")
    servers.kill(shown)
    snapmount("recover")
    assert {disk: dirty(mountpoint, disk) for disk in places} == first
    snapmount("delete", off.name)
    assert names_of(off) == ["tuesday"]
    assert taken(off, mountpoint, *storage, "--since=monday")["vda"] == (
        "there is no checkpoint monday any more, or never was"
    )


def test_what_cannot_be_compared_is_full_and_is_not_kept(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    taken(off, mountpoint, *storage, "--checkpoint=monday")
    hook = Path(storage[-1].partition("=")[2])
    hook.write_text(hook.read_text().replace(', "comparable": True', ""))
    why = taken(off, mountpoint, *storage, "--since=monday", "--checkpoint=tuesday")
    assert why == {"vda": None, "vdb": None, "vdc": "its clone by hook cannot be compared with a later one"}
    (_, tuesday) = snapmount_json("checkpoints", off.name)["checkpoints"]
    assert [disk["name"] for disk in tuesday["disks"]] == ["vda", "vdb"]
    assert len([name for name in left(places) if ".img." in name]) == 1, "the hook's of monday"
    assert taken(off, mountpoint, "--source", "offline", "--since=monday")["vda"] == (
        "a raw image holds no bitmap of changes"
    )


def test_a_clone_that_somebody_has_removed_makes_its_disk_full_once(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    taken(off, mountpoint, *storage, "--checkpoint=monday")
    (place,) = clones.places(places["vda"])
    (places["vda"] / place / "vda.img").unlink()
    why = taken(off, mountpoint, *storage, "--since=last", "--checkpoint")
    assert why["vdb"] is None
    assert (why["vda"] or "").endswith("vda.img has been removed or renamed")
    assert taken(off, mountpoint, *storage, "--since=last") == dict.fromkeys(places)


def test_the_checkpoint_of_a_snapshot_that_lives_can_be_deleted(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    snapmount(*storage, off.name, mountpoint, "--checkpoint=monday")
    first = read(mountpoint, places)
    snapmount("checkpoints", off.name, "--delete", "monday")
    assert read(mountpoint, places) == first
    assert len(left(places)) == 3, "the snapshot has them still"
    snapmount("delete", off.name)
    assert left(places) == []


def test_a_checkpoint_is_discarded_with_its_snapshot_if_that_is_wanted(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    snapmount(*storage, off.name, mountpoint, "--checkpoint=monday")
    snapmount("delete", "--discard-checkpoint", off.name)
    assert left(places) == []
    assert traces.found() == []


def test_a_snapshot_that_is_given_up_frees_the_space_of_its_checkpoint_at_once(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    snapmount(*storage, off.name, mountpoint, "--checkpoint=monday")
    with filesystems.filled(places["vda"], 40 << 20):
        wait_for(lambda: state_of(off.name)[0] == "gave up", "it is given up")
        wait_for(lambda: left(places) == [], "the clones have gone")
    snapmount("delete", off.name)
    assert names_of(off) == []


@pytest.mark.parametrize("also", [dying.COMMAND, dying.STANDBY])
@pytest.mark.parametrize(
    "call",
    [
        "snapmount.sources.storage.marks:write",
        "snapmount.sources.storage.clones:prepare",
        "snapmount.sources.storage.capture:take",
        "snapmount.sources.storage.increments:compared",
    ],
)
def test_wherever_it_is_killed_the_next_one_works(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...], call: str, also: str
) -> None:
    taken(off, mountpoint, *storage, "--checkpoint=monday")
    change(places, 3)
    dying.run(call, also, *storage, off.name, mountpoint, "--checkpoint=tuesday", "--since=monday")
    if also == dying.STANDBY:
        snapmount("recover", check=False)
    wait_for(lambda: not traces.records(), "it is undone")
    assert taken(off, mountpoint, *storage, "--checkpoint=tuesday", "--since=last") == dict.fromkeys(places)
    assert names_of(off) == ["monday", "tuesday"]
    assert len(left(places)) == 6


@pytest.mark.parametrize(
    "call",
    [
        "snapmount.sources.storage.source:release",
        "snapmount.lifecycle.checkpoints:settle",
        "snapmount.sources.storage.source:destroy",
    ],
)
def test_wherever_it_is_killed_when_it_ends_the_checkpoint_serves(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...], call: str
) -> None:
    dying.run(call, dying.NOBODY, *storage, off.name, mountpoint, "--checkpoint=monday", "--expire", "1s")
    wait_for(lambda: not traces.records(), "its standby has ended it")
    change(places, 4)
    assert taken(off, mountpoint, *storage, "--since=last") == dict.fromkeys(places)
    assert names_of(off) == ["monday"]


def test_sigkill_of_all_of_it_at_any_moment_and_the_next_one_just_works(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    began = time.monotonic()
    taken(off, mountpoint, *storage, "--checkpoint=first")
    took_s = time.monotonic() - began
    for moment in range(KILLS):
        words = (*storage, off.name, mountpoint, "--checkpoint", "--since=last")
        with subprocess.Popen(
            [SNAPMOUNT, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as command:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(took_s * (moment + 0.5) / KILLS)
            subprocess.run(["pkill", "-KILL", "-f", traces.PROCESSES])
        snapmount("recover")
        snapmount("delete", off.name, check=False)  # if it was there by then
        change(places, moment)
        assert taken(off, mountpoint, *storage, "--checkpoint", "--since=last") == dict.fromkeys(places), moment
        kept = snapmount_json("checkpoints", off.name)["checkpoints"]
        assert all(each["counts"] for each in kept), "those that were killed have gone"
        assert len(left(places)) == 3 * len(kept), moment
        snapmount("checkpoints", off.name, "--keep", "1")


def test_what_no_snapshot_owns_any_more_is_swept(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    """As if all of it had been killed, and the runtime record were gone."""
    taken(off, mountpoint, *storage, "--checkpoint=monday")
    (monday,) = checkpoints.of_vm(off.uuid())
    record = json.loads(checkpoints.path(monday).read_text()) | {"counts": False}
    checkpoints.path(monday).write_text(json.dumps(record))
    said = snapmount("recover").stdout
    assert f"removed {checkpoints.path(monday)}, checkpoint monday of {off.name}, whose snapshot has gone" in said
    assert left(places) == []
    assert traces.found() == []


def test_the_name_of_a_checkpoint_that_waits_for_its_snapshot_is_not_given_twice(
    off: vm.VM, places: dict[str, Path], mountpoint: Path, storage: tuple[str, ...]
) -> None:
    shown = snapmount_json(*storage, off.name, mountpoint, "--checkpoint=monday")
    servers.kill(shown)
    other = mountpoint / "other"
    said = refused(*storage, off.name, mountpoint, "--checkpoint=monday", code=4)
    assert shown["id"] in said
    assert not other.exists()
    snapmount("delete", shown["id"])
    assert names_of(off) == ["monday"]
