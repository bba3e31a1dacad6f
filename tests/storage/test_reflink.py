"""Clones of files on XFS and btrfs are what the files were, cost what was told, and leave nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapmount.core.document import to_document
from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.errors import LeftoverError, SpaceError, StateError, UnreachableError
from snapmount.host import fiemap, reflinks
from snapmount.storage import files, place, reflink
from snapmount.storage.driver import Clone, Task

from ..rig import clones, filesystems, vm
from ..rig.clones import BLOCK, ID, READER
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SOON_S = 15  # btrfs by itself takes 30
ROOT = Path(__file__).parents[2]
AS_ORDINARY_USER = """
import os, sys, trio
from pathlib import Path
from tests.rig import clones
from snapmount.storage import reflink
async def main(origin):
    why_not = await reflink.why_not(str(origin))
    async with clones.taken(reflink, origin) as clone:
        print(why_not, await reflink.why_lost(clone), clones.read(clone.frozen[0]) == clones.read(origin))
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
trio.run(main, Path(sys.argv[1]))
"""
CLONE = """
import json, sys, trio
from snapmount.core.document import from_document
from snapmount.storage import reflink
from snapmount.storage.driver import Clone
trio.run(reflink.create, from_document(Clone, json.loads(sys.argv[1])))
print("done", end="", flush=True)
"""


def listed(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def flags(path: Path) -> str:
    done = subprocess.run(["lsattr", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


# -- what can be cloned ------------------------------------------------------------------------------------------------


async def test_trying_whether_a_file_can_be_cloned_changes_nothing(images: Path) -> None:
    origin = clones.image(images / "vda.img")
    os.truncate(origin, 7 * BLOCK + 512)
    before = origin.stat(), listed(images)
    assert await reflink.why_not(str(origin)) is None
    assert (origin.stat(), listed(images)) == before
    with origin.open() as f:
        assert not any(each.flags & 0x2000 for each in fiemap.extents(f.fileno()))  # FIEMAP_EXTENT_SHARED


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("ext4", [], "lies on ext4 without reflinks"),
        ("tmpfs", [], "lies on tmpfs without reflinks"),
        ("xfs", ["-m", "reflink=0"], "lies on xfs without reflinks"),
    ],
    ids=["ext4", "tmpfs", "old xfs"],
)
async def test_a_file_system_without_reflinks_is_named(kind: str, options: list[str], told: str) -> None:
    with filesystems.mounted(300, kind, options=options) as directory:
        assert await reflink.why_not(str(clones.image(directory / "vda.img"))) == told
        assert [path.name for path in directory.iterdir() if path.name != "lost+found"] == ["vda.img"]


async def test_what_is_no_image_file_is_refused(images: Path) -> None:
    origin, pipe = clones.image(images / "vda.img"), images / "pipe"
    os.mkfifo(pipe)
    with ExitStack() as stack:
        device = vm.loop_device(origin, stack)
        assert await reflink.why_not(str(device)) == "is a block device, not a file"
    assert await reflink.why_not(str(pipe)) == "is no regular file"
    assert await reflink.why_not(str(images)) == "is no regular file"
    assert await reflink.why_not(str(images / "none")) == "cannot be looked at: No such file or directory"


async def test_a_file_mounted_over_another_is_refused(xfs: Path, btrfs: Path) -> None:
    origin, over = clones.image(xfs / "vda.img"), clones.image(btrfs / "vda.img")
    clones.run("mount", "--bind", over, origin)
    try:
        assert await reflink.why_not(str(origin)) == "cannot be cloned: Invalid cross-device link"
    finally:
        clones.run("umount", origin)


async def test_a_read_only_file_system_is_refused() -> None:
    with filesystems.mounted(300, "xfs") as directory:
        origin = clones.image(directory / "vda.img")
        with filesystems.read_only(directory):
            told = f"lies in {directory}, which cannot be written to: Read-only file system"
            assert await reflink.why_not(str(origin)) == told


# -- what it costs -----------------------------------------------------------------------------------------------------


async def test_the_pause_is_that_of_the_file_s_extents(images: Path) -> None:
    origin = clones.fragmented(images / "vda.img", 1000)
    clones.run("sync", origin)
    (offer,) = await reflink.plan(Task(ID, [str(origin)], READER))
    assert offer.pause_s == pytest.approx(reflink.FILE_S + 1000 * reflink.EXTENT_S)
    assert str(origin) in str(offer.remedy)
    assert ("128 KiB" in offer.guest_pays) == (files.fstype(str(images)) == "xfs")
    assert listed(images) == [origin.name]


@pytest.mark.parametrize(("hint", "most_blocks"), [(None, 32), ("4k", 1)])
async def test_what_xfs_takes_for_a_block_that_is_overwritten_is_as_documented(
    xfs: Path, hint: str | None, most_blocks: int
) -> None:
    origin = clones.image(xfs / "vda.img", blocks=8000)
    if hint:
        clones.run("xfs_io", "-c", f"cowextsize {hint}", origin)
    async with clones.taken(reflink, origin):
        clones.run("sync")
        before = filesystems.free_bytes(xfs)
        with clones.written(origin, range(0, 8000, 100)):  # as a VM has it open
            took = (before - filesystems.free_bytes(xfs)) // BLOCK
            assert 80 * most_blocks // 2 < took < 80 * (most_blocks + 1)
            clones.run("xfs_spaceman", "-c", "prealloc -s", xfs)
            assert (before - filesystems.free_bytes(xfs)) // BLOCK < 160


async def test_images_of_one_file_system_are_cloned_in_one_piece_one_after_the_other(images: Path) -> None:
    origins = [images / name for name in ("a/vda.img", "b/vda.img", "a/vdc.img")]
    for number, origin in enumerate(origins):
        origin.parent.mkdir(exist_ok=True)
        clones.image(origin, seed=number)
    (offer,) = await reflink.plan(Task(ID, list(map(str, origins)), READER))
    assert offer.pause_s == pytest.approx(3 * (reflink.FILE_S + reflink.EXTENT_S))
    clone = await clones.take(reflink, offer.clone)
    assert [clones.read(clone.of(str(origin))) for origin in origins] == list(map(clones.read, origins))
    assert len(await reflink.rooms(clone)) == 1
    await reflink.remove(clone)
    assert clones.places(images / "a") == clones.places(images / "b") == []


async def test_images_of_two_file_systems_are_cloned_in_two_pieces(xfs: Path, btrfs: Path) -> None:
    origins = [str(clones.image(directory / "vda.img")) for directory in (xfs, btrfs)]
    offers = await reflink.plan(Task(ID, origins, READER))
    assert [offer.clone.origins for offer in offers] == [(origins[0],), (origins[1],)]


async def test_what_cannot_be_removed_in_one_directory_keeps_nothing_in_another(xfs: Path) -> None:
    for name in ("a", "b"):
        (xfs / name).mkdir()
    clone = await clones.planned(reflink, *(clones.image(xfs / name / "vda.img") for name in ("a", "b")))
    await clones.take(reflink, clone)
    stranger = Path(clone.frozen[0]).with_name("notes")
    stranger.touch()
    with pytest.raises(LeftoverError, match="notes"):
        await reflink.remove(clone)
    assert clones.places(xfs / "b") == []
    stranger.unlink()
    await reflink.remove(clone)
    assert clones.places(xfs / "a") == []


async def test_the_guest_s_writes_take_the_space_of_the_images_file_system(images: Path) -> None:
    async with clones.taken(reflink, clones.image(images / "vda.img")) as clone:
        (room,) = await reflink.rooms(clone)
        status = os.statvfs(images)
        assert room.place == str(images)
        assert room.total_bytes == status.f_blocks * status.f_frsize
        assert 0 < room.free_bytes <= room.total_bytes


# -- what it is --------------------------------------------------------------------------------------------------------


async def test_a_clone_keeps_the_bytes_of_its_moment_whatever_becomes_of_the_origin(images: Path) -> None:
    origin = clones.image(images / "vda.img", blocks=500)
    os.truncate(origin, 600 * BLOCK + 512)
    content = origin.read_bytes()
    async with clones.taken(reflink, origin) as clone:
        frozen = Path(clone.of(str(origin)))
        for seed in range(3):
            clones.scribble(origin, seed)
            assert clones.read(frozen) == content
        os.truncate(origin, 100)
        origin.unlink()
        assert clones.read(frozen) == content
        assert await reflink.why_lost(clone) is None


async def test_what_is_written_between_preparing_and_cloning_is_in_the_clone(images: Path) -> None:
    origin = clones.image(images / "vda.img")
    clone = await clones.planned(reflink, origin)
    await reflink.prepare(clone)
    clones.scribble(origin, 1)
    with origin.open("r+b") as f:
        f.write(b"not yet on the disk")
    content = origin.read_bytes()
    await reflink.create(clone)
    assert await reflink.activate(clone) == clone
    assert clones.read(clone.frozen[0]) == content
    await reflink.remove(clone)


async def test_a_clone_can_be_read_by_its_reader_alone_and_written_by_nobody(images: Path) -> None:
    origin = clones.image(images / "vda.img")
    async with clones.taken(reflink, origin) as clone:
        frozen = Path(clone.frozen[0])
        assert clones.run_as(READER.uid, "cat", frozen).stdout == origin.read_bytes()
        assert (
            b"Permission denied"
            in clones.run_as(READER.uid, "dd", "if=/dev/zero", f"of={frozen}", "conv=notrunc").stderr
        )
        assert b"Permission denied" in clones.run_as(READER.uid, "ls", frozen.parent).stderr
        assert b"Permission denied" in clones.run_as(65533, "cat", frozen).stderr
        os.chown(frozen.parent, -1, 65533)
        assert b"Permission denied" in clones.run_as(65533, "cat", frozen).stderr  # nor if it could get there


@pytest.mark.parametrize("of_directory", ["+C", "-C"])
@pytest.mark.parametrize("of_file", ["+C", "-C"])
async def test_a_file_without_copy_on_write_is_cloned_as_one(btrfs: Path, of_directory: str, of_file: str) -> None:
    origin = btrfs / "vda.img"
    origin.touch()
    clones.run("chattr", of_file, origin)
    clones.run("chattr", of_directory, btrfs)
    clones.image(origin)
    assert await reflink.why_not(str(origin)) is None
    async with clones.taken(reflink, origin) as clone:
        content = origin.read_bytes()
        assert ("C" in flags(Path(clone.frozen[0]))) == ("C" in flags(origin)) == (of_file == "+C")
        clones.scribble(origin, 1)
        assert clones.read(clone.frozen[0]) == content


@pytest.mark.parametrize(
    "name",
    ["with blank", "new\nline", 'it\'s "quoted"', "-f", "$(touch x)", "Grüße", os.fsdecode(b"caf\xe9"), "x" * 255],
)
async def test_odd_names_of_images_and_their_directories_do_not_matter(images: Path, name: str) -> None:
    directory = images / name
    directory.mkdir()
    origin = clones.image(directory / name)
    assert await reflink.why_not(str(origin)) is None
    async with clones.taken(reflink, origin) as clone:
        assert clones.read(clone.of(str(origin))) == origin.read_bytes()
    assert listed(directory) == [origin.name]
    clone = await clones.take(reflink, await clones.planned(reflink, origin))
    for command in reflink.by_hand(clone):
        clones.run("env", "-C", images, "sh", "-c", command)
    assert listed(directory) == [origin.name]


async def test_the_space_is_back_soon_after_a_clone_is_removed(images: Path) -> None:
    origin = clones.image(images / "vda.img", blocks=(64 << 20) // BLOCK)
    async with clones.taken(reflink, origin):
        origin.unlink()
        clones.run("sync")
        before = filesystems.free_bytes(images)
    wait_for(lambda: filesystems.free_bytes(images) > before + (48 << 20), "the space is back", SOON_S)


# -- what may go wrong -------------------------------------------------------------------------------------------------


def overwrite(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"y")


def copy_over(path: Path) -> None:
    shutil.copy2(path, path.with_name("other"))
    path.with_name("other").rename(path)


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (overwrite, "FILE has been written to"),
        (lambda path: os.truncate(path, 5), "FILE has 5 bytes now, it had 262144"),
        (copy_over, "FILE is another file now"),
        (Path.unlink, "FILE has been removed or renamed"),
        (lambda path: shutil.rmtree(path.parent), "FIRST has been removed or renamed"),
        (lambda path: os.removexattr(path, place.MARK), "FILE was not finished, or is another file now"),
    ],
    ids=["written", "truncated", "replaced", "removed", "removed with its directory", "without its note"],
)
async def test_what_becomes_of_a_clone_is_told(xfs: Path, do: Callable[[Path], object], told: str) -> None:
    async with clones.taken(reflink, clones.image(xfs / "vda.img"), clones.image(xfs / "vdb.img")) as clone:
        assert await reflink.why_lost(clone) is None
        frozen = Path(clone.frozen[1])
        do(frozen)
        told = told.replace("FILE", str(frozen)).replace("FIRST", clone.frozen[0])
        assert await reflink.why_lost(clone) == told
        with pytest.raises(StateError) as caught:
            await reflink.activate(clone)
        assert caught.value.message == told


async def test_a_clone_that_was_prepared_only_is_none_and_can_be_removed(images: Path) -> None:
    clone = await clones.planned(reflink, clones.image(images / "vda.img"))
    await reflink.prepare(clone)
    with pytest.raises(StateError, match="was not finished"):
        await reflink.activate(clone)
    await reflink.remove(clone)
    await reflink.remove(clone)
    assert clones.places(images) == []


async def test_what_is_left_of_a_process_that_was_killed_at_any_step_is_removed(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    steps = [(os, "setxattr"), (os, "fchmod"), (reflinks, "match_nocow"), (reflinks, "clone")]
    origin = clones.image(images / "vda.img")
    for module, name in steps:
        clone = await clones.planned(reflink, origin)
        with monkeypatch.context() as patched:

            def killed(*_: object) -> None:
                raise KilledError

            patched.setattr(module, name, killed)
            with pytest.raises(KilledError):
                await clones.take(reflink, clone)
        assert len(clones.places(images)) == 1
        await reflink.remove(clone)
        assert clones.places(images) == []


async def test_a_link_in_the_place_of_our_directory_is_not_followed(xfs: Path, tmp_path: Path) -> None:
    clone = await clones.planned(reflink, clones.image(xfs / "vda.img"))
    link = Path(clone.frozen[0]).parent
    (tmp_path / "vda.img").write_text("somebody else's")
    link.symlink_to(tmp_path)
    with pytest.raises(StateError, match="cannot be made: File exists"):
        await reflink.prepare(clone)
    with pytest.raises(StateError, match="what is there is not snapmount's"):
        await reflink.create(clone)
    with pytest.raises(LeftoverError, match="cannot be removed: what is there is not snapmount's"):
        await reflink.remove(clone)
    assert (tmp_path / "vda.img").read_text() == "somebody else's"
    assert link.is_symlink()
    link.unlink()


async def test_a_directory_of_others_by_that_name_is_left_alone(xfs: Path) -> None:
    clone = await clones.planned(reflink, clones.image(xfs / "vda.img"))
    theirs = Path(clone.frozen[0]).parent
    theirs.mkdir()
    (theirs / "vda.img").write_text("somebody else's")
    with pytest.raises(LeftoverError, match="what is there is not snapmount's"):
        await reflink.remove(clone)
    os.setxattr(theirs, place.MARK, b".snapmount-00000000-reflink")
    with pytest.raises(LeftoverError, match="what is there is not snapmount's"):
        await reflink.remove(clone)
    assert (theirs / "vda.img").read_text() == "somebody else's"
    shutil.rmtree(theirs)


async def test_what_others_have_put_beside_a_clone_is_named_and_left(xfs: Path) -> None:
    clone = await clones.take(reflink, await clones.planned(reflink, clones.image(xfs / "vda.img")))
    theirs = Path(clone.frozen[0]).with_name("notes\n")
    theirs.write_text("somebody else's")
    with pytest.raises(LeftoverError) as caught:
        await reflink.remove(clone)
    assert "there is something in it that is not snapmount's: notes\\n" in caught.value.message
    assert theirs.read_text() == "somebody else's"
    theirs.unlink()
    await reflink.remove(clone)


async def test_a_file_system_that_is_full_meanwhile_is_told_and_the_origin_is_as_it_was() -> None:
    with filesystems.mounted(300, "xfs") as directory:
        origin = clones.fragmented(directory / "vda.img", 8000)
        content, clone = origin.read_bytes(), await clones.planned(reflink, origin)
        await reflink.prepare(clone)
        with filesystems.filled(directory, leave=0):
            with pytest.raises(SpaceError, match="cannot be cloned: No space left on device"):
                await reflink.create(clone)
            assert str(await reflink.why_lost(clone)).endswith("was not finished, or is another file now")
            await reflink.remove(clone)
            with pytest.raises(SpaceError, match="cannot be made: No space left on device"):
                await reflink.prepare(clone)
            await reflink.remove(clone)
        assert origin.read_bytes() == content
        assert clones.places(directory) == []


async def test_a_clone_in_another_place_than_ours_is_not_removed(xfs: Path) -> None:
    origin = clones.image(xfs / "vda.img")
    clone = await clones.planned(reflink, origin)
    with pytest.raises(LeftoverError, match="what is there is not snapmount's"):
        await reflink.remove(replace(clone, frozen=(str(origin),)))
    assert origin.exists()


async def test_a_clone_whose_file_system_is_not_mounted_is_not_lost_for_ever() -> None:
    with filesystems.mounted(300, "xfs") as directory:
        clone = await clones.take(reflink, await clones.planned(reflink, clones.image(directory / "vda.img")))
        device = clones.run("findmnt", "-no", "SOURCE", directory)
        clones.run("umount", directory)
        told = "which was mounted on .* is out of sight"
        with pytest.raises(UnreachableError, match=told):
            await reflink.activate(clone)
        with pytest.raises(UnreachableError, match=told):
            await reflink.why_lost(clone)
        with pytest.raises(StateError, match=told):
            await reflink.changed(clone, clone, clone.origins[0])
        with pytest.raises(LeftoverError, match=told):
            await reflink.remove(clone)
        with pytest.raises(SpaceError, match=told):
            await reflink.rooms(clone)
        clones.run("mount", device.strip(), directory)
        assert await reflink.activate(clone) == clone
        await reflink.remove(clone)
        assert clones.places(directory) == []


def test_an_ordinary_user_clones_what_is_the_user_s(images: Path) -> None:
    origin = clones.image(images / "vda.img")
    os.chown(images, READER.uid, READER.gid)
    words = [sys.executable, "-c", AS_ORDINARY_USER, str(origin)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("None None True\n", "")
    assert clones.places(images) == []


def test_a_process_that_is_killed_while_it_clones_leaves_nothing_that_passes_for_a_clone(images: Path) -> None:
    origin = clones.fragmented(images / "vda.img", 20_000)
    clone = trio.run(clones.planned, reflink, origin)
    trio.run(reflink.prepare, clone)
    target = Path(clone.frozen[0])
    words = [sys.executable, "-c", CLONE, json.dumps(to_document(clone))]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as child:
        wait_for(lambda: target.stat().st_blocks or child.poll() is not None, "it is being cloned")
        child.kill()
        assert child.stdout
        is_done = child.stdout.read() == b"done"
    why = trio.run(reflink.why_lost, clone)
    assert why is None or why.endswith("was not finished, or is another file now")
    assert why is None or not is_done
    assert why or target.read_bytes() == origin.read_bytes()
    trio.run(reflink.remove, clone)
    assert clones.places(images) == []


# -- what has changed --------------------------------------------------------------------------------------------------


async def test_what_has_changed_is_found_to_the_block(images: Path) -> None:
    origin = clones.image(images / "vda.img", blocks=2000)
    ids = ["00000000", "00000001", "00000002", "00000003"]
    async with AsyncExitStack() as stack:
        made: list[Clone] = []
        for seed, snapshot_id in enumerate(ids):
            made.append(await stack.enter_async_context(clones.taken(reflink, origin, snapshot_id=snapshot_id)))
            clones.scribble(origin, seed)
        for older, newer in itertools.combinations(made, 2):
            found = await reflink.changed(older, newer, str(origin))
            differing = clones.differing(clones.read(older.frozen[0]), clones.read(newer.frozen[0]))
            assert 0 < len(differing) < 1500
            assert clones.touched(found) == differing
            assert all(a.end <= b.start for a, b in itertools.pairwise(found))


async def test_what_was_discarded_has_changed_and_is_a_hole(images: Path) -> None:
    origin = clones.image(images / "vda.img", blocks=100)
    async with clones.taken(reflink, origin, snapshot_id="00000000") as older:
        clones.run("fallocate", "-p", "-o", str(7 * BLOCK), "-l", str(3 * BLOCK), origin)
        clones.run("fallocate", "-z", "-o", str(10 * BLOCK), "-l", str(2 * BLOCK), origin)
        async with clones.taken(reflink, origin, snapshot_id="00000001") as newer:
            found = await reflink.changed(older, newer, str(origin))
            assert found == [Extent(7 * BLOCK, 5 * BLOCK, HOLE | ZERO)]
            back = await reflink.changed(newer, older, str(origin))
            assert back == [Extent(7 * BLOCK, 5 * BLOCK, 0)]


@pytest.mark.parametrize("size", [10 * BLOCK, 50 * BLOCK + 512, 100 * BLOCK - 1, 100 * BLOCK + 1, 200 * BLOCK])
async def test_a_file_that_has_become_longer_or_shorter_is_told_up_to_its_end(images: Path, size: int) -> None:
    origin = clones.image(images / "vda.img", blocks=100)
    async with clones.taken(reflink, origin, snapshot_id="00000000") as older:
        os.truncate(origin, size)
        with origin.open("r+b") as f:
            f.write(b"x")
        async with clones.taken(reflink, origin, snapshot_id="00000001") as newer:
            found = await reflink.changed(older, newer, str(origin))
            differing = clones.differing(clones.read(older.frozen[0]), clones.read(newer.frozen[0]))
            assert differing <= clones.touched(found) <= differing | {size // BLOCK}  # XFS clears the last block's rest
            assert found[-1].end <= size


async def test_what_is_compressed_counts_as_changed(btrfs: Path) -> None:
    origin = btrfs / "vda.img"
    origin.touch()
    clones.run("btrfs", "property", "set", origin, "compression", "zstd")
    origin.write_bytes(b"the same again and again" * BLOCK)
    async with (
        clones.taken(reflink, origin, snapshot_id="00000000") as older,
        clones.taken(reflink, origin, snapshot_id="00000001") as newer,
    ):
        assert await reflink.changed(older, newer, str(origin)) == [Extent(0, origin.stat().st_size, 0)]


async def test_a_clone_that_is_lost_is_compared_with_none(xfs: Path) -> None:
    origin = clones.image(xfs / "vda.img")
    async with (
        clones.taken(reflink, origin, snapshot_id="00000000") as older,
        clones.taken(reflink, origin, snapshot_id="00000001") as newer,
    ):
        overwrite(Path(older.frozen[0]))
        with pytest.raises(StateError, match="has been written to"):
            await reflink.changed(older, newer, str(origin))
