"""Snapshots of subvolumes hold the images as they were, and are removed if they are ours."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from snapmount.errors import LeftoverError, SpaceError, StateError, UnreachableError
from snapmount.host import programs, subvolumes
from snapmount.storage import btrfs, reflink
from snapmount.storage.driver import Clone, Task

from ..rig import clones, filesystems
from ..rig.clones import ID, READER
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SOON_S = 15  # btrfs by itself takes 30


@pytest.fixture
def subvolume(btrfs: Path) -> Iterator[Path]:
    """An empty subvolume; nothing of ours is left in it."""
    path = btrfs / "with blank\nand 'line'"
    clones.run("btrfs", "subvolume", "create", path)
    yield path
    left = clones.places(path)
    clones.run("btrfs", "subvolume", "delete", path)
    assert left == []


def listed(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def remounted(directory: Path, *options: str) -> None:
    """Mount the device of that file system anew."""
    device = clones.run("findmnt", "-nvo", "SOURCE", directory).strip()
    clones.run("umount", directory)
    clones.run("mount", *options, device, directory)


# -- what can be cloned ------------------------------------------------------------------------------------------------


async def test_what_lies_on_btrfs_can_be_cloned_and_what_lies_elsewhere_not(subvolume: Path, xfs: Path) -> None:
    origin = clones.image(subvolume / "vda.img")
    assert await btrfs.why_not(str(origin)) is None
    assert await btrfs.why_not(str(clones.image(xfs / "vda.img"))) == "lies on xfs"
    assert await btrfs.why_not(str(subvolume)) == "is no regular file"
    assert listed(subvolume) == ["vda.img"]


async def test_a_subvolume_that_cannot_be_written_to_is_refused(subvolume: Path) -> None:
    origin = clones.image(subvolume / "vda.img")
    clones.run("btrfs", "property", "set", subvolume, "ro", "true")
    told = f"lies in the subvolume {subvolume}, which cannot be written to"
    assert await btrfs.why_not(str(origin)) == told


async def test_a_missing_program_comes_with_the_command_that_installs_it(
    subvolume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = clones.image(subvolume / "vda.img")
    monkeypatch.setattr(programs, "search_path", lambda: "/nonexistent")
    assert await btrfs.why_not(str(origin)) == "btrfs is missing: sudo apt-get install btrfs-progs"


async def test_an_ordinary_user_is_told_what_root_is_needed_for(
    subvolume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = clones.image(subvolume / "vda.img")
    monkeypatch.setattr(os, "geteuid", lambda: READER.uid)
    assert await btrfs.why_not(str(origin)) == "only root can remove the snapshot of a subvolume"


async def test_a_mount_of_a_part_of_a_subvolume_is_refused(subvolume: Path, tmp_path: Path) -> None:
    """Its paths tell nothing of where a file is in the subvolume."""
    (subvolume / "a").mkdir()
    (subvolume / "b").mkdir()
    clones.image(subvolume / "a" / "vda.img")
    why = "lies in a subvolume whose top directory is not on the same mount"
    for mountpoint in (tmp_path, subvolume / "b"):
        clones.run("mount", "--bind", subvolume / "a", mountpoint)
        try:
            origin = str(mountpoint / "vda.img")
            assert await btrfs.why_not(origin) == why
            with pytest.raises(StateError, match=why):
                await btrfs.plan(Task(ID, [origin], READER))
        finally:
            clones.run("umount", mountpoint)


async def test_a_subvolume_with_a_swap_file_is_refused(subvolume: Path) -> None:
    origin, swap = clones.image(subvolume / "vda.img"), subvolume.parent / "swap file"
    swap.touch()
    clones.run("chattr", "+C", swap)
    clones.run("fallocate", "-l", "4M", swap)
    swap.chmod(0o600)
    clones.run("mkswap", swap)
    clones.run("swapon", swap)
    try:
        beside = clones.image(subvolume.parent / "vda.img")
        assert await btrfs.why_not(str(origin)) is None
        assert f"because of the swap file {swap}" in str(await btrfs.why_not(str(beside)))
        clone = await clones.planned(btrfs, beside)
        await btrfs.prepare(clone)
        with pytest.raises(StateError, match="Text file busy"):
            await btrfs.create(clone)
        await btrfs.remove(clone)
    finally:
        clones.run("swapoff", swap)


# -- what it is --------------------------------------------------------------------------------------------------------


async def test_images_of_one_subvolume_are_cloned_in_one_piece(subvolume: Path) -> None:
    (subvolume / "a").mkdir()
    nested = subvolume / "a" / "nested"
    clones.run("btrfs", "subvolume", "create", nested)
    origins = [subvolume / "vda.img", subvolume / "a" / "vdb.img", nested / "vdc.img"]
    for number, origin in enumerate(origins):
        clones.image(origin, seed=number)
    offers = await btrfs.plan(Task(ID, list(map(str, origins)), READER))
    assert [offer.clone.origins for offer in offers] == [(str(origins[0]), str(origins[1])), (str(origins[2]),)]
    for offer in offers:
        clone = await clones.take(btrfs, offer.clone)
        assert [clones.read(clone.of(each)) for each in clone.origins] == list(map(clones.read, clone.origins))
        await btrfs.remove(clone)
        await btrfs.remove(clone)
    assert clones.places(nested) == []
    clones.run("btrfs", "subvolume", "delete", nested)


@pytest.mark.parametrize("options", [(), ("-o", "subvol=vms")], ids=["the top of all", "a subvolume"])
async def test_the_subvolume_may_be_the_one_that_is_mounted(options: tuple[str, ...]) -> None:
    with filesystems.mounted(400, "btrfs") as directory:
        clones.run("btrfs", "subvolume", "create", directory / "vms")
        remounted(directory, *options)
        origin = clones.image(directory / "vda.img")
        content = origin.read_bytes()
        async with clones.taken(btrfs, origin) as clone:
            clones.scribble(origin, 1)
            assert clones.read(clone.frozen[0]) == content
        assert clones.places(directory) == []


async def test_a_clone_keeps_the_bytes_of_its_moment_whatever_becomes_of_the_origin(subvolume: Path) -> None:
    origins = [clones.image(subvolume / name, blocks=500) for name in ("vda.img", "vdb.img")]
    clones.run("chattr", "+C", subvolume)
    (subvolume / "vdc.img").touch()
    origins.append(clones.image(subvolume / "vdc.img", blocks=500))
    clone = await clones.planned(btrfs, *origins)
    await btrfs.prepare(clone)
    for number, origin in enumerate(origins):
        clones.scribble(origin, number)
        with origin.open("r+b") as f:
            f.write(b"not yet on the disk")
    contents = list(map(clones.read, origins))
    await btrfs.create(clone)
    assert await btrfs.activate(clone) == clone
    for number, origin in enumerate(origins):
        clones.scribble(origin, 10 + number)
    os.truncate(origins[0], 100)
    origins[1].unlink()
    assert list(map(clones.read, clone.frozen)) == contents
    assert await btrfs.why_lost(clone) is None
    await btrfs.remove(clone)


async def test_others_than_the_reader_s_group_see_nothing_of_the_subvolume(subvolume: Path) -> None:
    origin = clones.image(subvolume / "vda.img")
    (subvolume / "open to all").write_text("")
    async with clones.taken(btrfs, origin) as clone:
        frozen = Path(clone.frozen[0])
        assert clones.run_as(READER.uid, "cat", frozen).stdout == origin.read_bytes()
        assert b"Permission denied" in clones.run_as(65533, "cat", frozen.with_name("open to all")).stderr


async def test_a_clone_of_each_kind_can_be_taken_at_once(subvolume: Path) -> None:
    origins = [clones.image(subvolume / name) for name in ("vda.img", "vdb.img")]
    async with clones.taken(btrfs, origins[0]) as first, clones.taken(reflink, origins[1]) as second:
        assert clones.read(first.frozen[0]) == clones.read(second.frozen[0])


async def test_the_guest_s_writes_take_the_space_of_the_file_system(subvolume: Path) -> None:
    async with clones.taken(btrfs, clones.image(subvolume / "vda.img")) as clone:
        (room,) = await btrfs.rooms(clone)
        assert room.place == str(subvolume)
        assert 0 < room.free_bytes < room.total_bytes


# -- what may go wrong -------------------------------------------------------------------------------------------------


def write(snapshot: Path) -> None:
    """As somebody does who does not know what it is for; afterwards it is read-only again."""
    make_writable(snapshot)
    with (snapshot / "vda.img").open("r+b") as f:
        f.write(b"y")
    clones.run("btrfs", "filesystem", "sync", snapshot)
    clones.run("btrfs", "property", "set", "-t", "subvol", snapshot, "ro", "true")


def make_writable(snapshot: Path) -> None:
    clones.run("btrfs", "property", "set", "-t", "subvol", snapshot, "ro", "false")


def delete(snapshot: Path) -> None:
    clones.run("btrfs", "subvolume", "delete", snapshot)


def delete_all(snapshot: Path) -> None:
    delete(snapshot)
    snapshot.parent.rmdir()


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (write, "can be written to now, or has been"),
        (make_writable, "can be written to now, or has been"),
        (delete, "has been removed or renamed"),
        (lambda path: path.rename(path.with_name("x")), "has been removed or renamed"),
        (delete_all, "has been removed or renamed"),
    ],
    ids=["written", "writable", "deleted", "renamed", "deleted with its directory"],
)
async def test_what_becomes_of_a_clone_is_told(subvolume: Path, do: Callable[[Path], object], told: str) -> None:
    clone = await clones.take(btrfs, await clones.planned(btrfs, clones.image(subvolume / "vda.img")))
    snapshot = Path(clone.frozen[0]).parent
    do(snapshot)
    assert await btrfs.why_lost(clone) == f"{snapshot} {told}"
    with pytest.raises(StateError, match=told):
        await btrfs.activate(clone)
    if snapshot.with_name("x").exists():
        with pytest.raises(LeftoverError, match="there is something in it that is not snapmount's: x"):
            await btrfs.remove(clone)
        snapshot.with_name("x").rename(snapshot)
    await btrfs.remove(clone)


async def test_what_is_left_of_a_process_that_was_killed_at_any_step_is_removed(
    subvolume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    origin = clones.image(subvolume / "vda.img")
    for module, name in [
        (os, "setxattr"),
        (os, "fchmod"),
        (subvolumes, "commit"),
        (btrfs, "_check_subvolume"),
        (subvolumes, "snapshot"),
    ]:
        clone = await clones.planned(btrfs, origin)
        with monkeypatch.context() as patched:
            patched.setattr(module, name, killed)
            with pytest.raises(KilledError):
                await clones.take(btrfs, clone)
        assert len(clones.places(subvolume)) == 1
        with pytest.raises(StateError, match="has been removed or renamed"):
            await btrfs.activate(clone)
        await btrfs.remove(clone)
        assert clones.places(subvolume) == []


async def test_the_place_of_a_subvolume_may_have_been_taken_by_another(subvolume: Path) -> None:
    clone = await clones.planned(btrfs, clones.image(subvolume / "vda.img"))
    delete(subvolume)
    clones.run("btrfs", "subvolume", "create", subvolume)
    await btrfs.prepare(clone)
    with pytest.raises(StateError, match="is another subvolume now"):
        await btrfs.create(clone)
    await btrfs.remove(clone)


@pytest.mark.parametrize("what", ["subvolume", "directory", "link"])
async def test_what_is_in_the_place_of_our_snapshot_and_is_not_ours_is_left_alone(subvolume: Path, what: str) -> None:
    clone = await clones.planned(btrfs, clones.image(subvolume / "vda.img"))
    await btrfs.prepare(clone)
    theirs, there = subvolume.parent / "theirs", Path(clone.frozen[0]).parent
    clones.run("btrfs", "subvolume", "create", there if what == "subvolume" else theirs)
    if what != "subvolume":
        there.symlink_to(theirs) if what == "link" else there.mkdir()
    with pytest.raises(LeftoverError, match=r"not snapmount's|Too many levels of symbolic links"):
        await btrfs.remove(clone)
    assert there.exists()
    there.unlink() if what == "link" else there.rmdir()
    await btrfs.remove(clone)


async def test_a_link_in_the_place_of_our_directory_is_not_followed(subvolume: Path, btrfs_mount: Path) -> None:
    clone = await clones.planned(btrfs, clones.image(subvolume / "vda.img"))
    theirs, link = subvolume.parent / "theirs", Path(clone.frozen[0]).parents[1]
    theirs.mkdir()
    clones.run("btrfs", "subvolume", "snapshot", "-r", subvolume, theirs / btrfs.SNAPSHOT)
    link.symlink_to(theirs)
    with pytest.raises(StateError, match="cannot be made: File exists"):
        await btrfs.prepare(clone)
    with pytest.raises(StateError, match="what is there is not snapmount's"):
        await btrfs.create(clone)
    with pytest.raises(LeftoverError, match="what is there is not snapmount's"):
        await btrfs.remove(clone)
    assert (theirs / btrfs.SNAPSHOT / "vda.img").exists()
    link.unlink()
    delete(theirs / btrfs.SNAPSHOT)


async def test_a_clone_whose_file_system_is_not_mounted_is_not_lost_for_ever() -> None:
    with filesystems.mounted(400, "btrfs") as directory:
        clone = await clones.take(btrfs, await clones.planned(btrfs, clones.image(directory / "vda.img")))
        device = clones.run("findmnt", "-no", "SOURCE", directory).strip()
        clones.run("umount", directory)
        told = "which was mounted on .* is out of sight"
        with pytest.raises(UnreachableError, match=told):
            await btrfs.activate(clone)
        with pytest.raises(UnreachableError, match=told):
            await btrfs.why_lost(clone)
        with pytest.raises(StateError, match=told):
            await btrfs.changed(clone, clone, clone.origins[0])
        with pytest.raises(LeftoverError, match=told):
            await btrfs.remove(clone)
        with pytest.raises(SpaceError, match=told):
            await btrfs.rooms(clone)
        clones.run("mount", device, directory)
        assert await btrfs.activate(clone) == clone
        await btrfs.remove(clone)
        assert clones.places(directory) == []


async def test_by_hand_is_done_what_we_could_not(subvolume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = await clones.take(btrfs, await clones.planned(btrfs, clones.image(subvolume / "vda.img")))
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "/nonexistent")
        with pytest.raises(LeftoverError, match="btrfs is missing") as caught:
            await btrfs.remove(clone)
        assert caught.value.remedy == "sudo apt-get install btrfs-progs"
    for command in btrfs.by_hand(clone):
        clones.run("sh", "-c", command)
    assert clones.places(subvolume) == []


async def test_a_clone_is_removed_while_it_is_read(subvolume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its space is the reader's until that ends, which nobody waits for long."""
    monkeypatch.setattr(btrfs, "FREE_S", 0.1)
    origin = clones.image(subvolume / "vda.img")
    clone = await clones.take(btrfs, await clones.planned(btrfs, origin))
    descriptor = os.open(clone.frozen[0], os.O_RDONLY)
    try:
        await btrfs.remove(clone)
    finally:
        os.close(descriptor)


async def test_the_space_is_back_soon_after_a_clone_is_removed(subvolume: Path) -> None:
    origin = clones.image(subvolume / "vda.img", blocks=(64 << 20) // clones.BLOCK)
    async with clones.taken(btrfs, origin):
        origin.unlink()
        clones.run("sync")
        before = filesystems.free_bytes(subvolume)
    wait_for(lambda: filesystems.free_bytes(subvolume) > before + (48 << 20), "the space is back", SOON_S)


# -- what has changed --------------------------------------------------------------------------------------------------


async def test_what_has_changed_is_found_to_the_block(subvolume: Path) -> None:
    origin = clones.image(subvolume / "vda.img", blocks=2000)
    async with AsyncExitStack() as stack:
        made: list[Clone] = []
        for number in range(4):
            taken = clones.taken(btrfs, origin, snapshot_id=f"{number:08x}")
            made.append(await stack.enter_async_context(taken))
            clones.scribble(origin, number)
        for older, newer in itertools.combinations(made, 2):
            found = await btrfs.changed(older, newer, str(origin))
            differing = clones.differing(clones.read(older.frozen[0]), clones.read(newer.frozen[0]))
            assert 0 < len(differing) < 1500
            assert clones.touched(found) == differing


async def test_clones_of_different_file_systems_are_not_compared(subvolume: Path) -> None:
    origin = clones.image(subvolume / "vda.img")
    with filesystems.mounted(400, "btrfs") as directory:
        other = clones.image(directory / "vda.img")
        async with clones.taken(btrfs, origin) as older, clones.taken(btrfs, other) as newer:
            moved = Clone("btrfs", older.origins, newer.frozen, {**newer.kept, "subvolume": str(subvolume)})
            with pytest.raises(StateError, match="lie on different file systems"):
                await btrfs.changed(older, moved, str(origin))
