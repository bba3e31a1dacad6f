"""What has changed in a disk as a qcow2 file: over what was there before, it is the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from snapmount.core.changes import Changes
from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.core.qcow2layout import Backing
from snapmount.publish.qcow2 import Qcow2Increment
from snapmount.publish.tree import File, Tree

from ..strategies import PROPERTY
from .test_tree import BytesImage

KIB, MIB = 1 << 10, 1 << 20
FILE = 2  # its inode
CLEAN, DATA, ZEROS = range(3)


class ChangedImage(BytesImage):
    """A disk in which parts have changed; a look tells of one."""

    def __init__(self, content: bytes, changes: list[tuple[int, int]]) -> None:
        super().__init__(content)
        self.changes = [Extent(start, end - start, flags_of(content[start:end])) for start, end in changes]
        self.looks = 0

    async def dirty(self, start: int) -> Changes:
        self.looks += 1
        for change in self.changes:
            if change.start >= start:
                return Changes(change.end, (change,))
        return Changes(self.size_bytes, ())


def flags_of(content: bytes) -> int:
    return 0 if content.strip(b"\0") else HOLE | ZERO


def tree(image: BytesImage, cluster_bytes: int, backing: Backing | None = None) -> Tree:
    return Tree([File("vda.inc.qcow2", Qcow2Increment(image, cluster_bytes, backing))], 1, 1000, 1001)


async def file_of(image: BytesImage, cluster_bytes: int, backing: Backing | None = None) -> bytes:
    shown = tree(image, cluster_bytes, backing)
    size = await shown.file(FILE).content.size_bytes()
    assert (await shown.attributes(FILE)).size_bytes == size
    return bytes(await shown.read(FILE, 0, size))


parts = st.lists(
    st.tuples(st.integers(1, 70_000) | st.sampled_from([4 * KIB, 64 * KIB]), st.sampled_from([CLEAN, DATA, ZEROS])),
    min_size=1,
    max_size=8,
)


@settings(PROPERTY, max_examples=30)
@given(parts, st.sampled_from([4 * KIB, 64 * KIB]), st.integers(-9000, 9000))
async def test_over_the_disk_as_it_was_it_is_the_disk_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]], cluster_bytes: int, grown: int
) -> None:
    place, changes, after = 0, [], bytearray()
    for number, (length, kind) in enumerate(parts):
        after += bytes([0 if kind == ZEROS else number % 255 + 1]) * length
        if kind != CLEAN:
            changes.append((place, place + length))
        place += length
    before = bytearray(after)
    for start, end in changes:
        before[start:end] = b"\xee" * (end - start)
    if grown < 0:  # the disk has grown by that: it is in the changes
        start = max(0, len(after) + grown)
        before = before[:start]
        changes = [*((each[0], min(each[1], start)) for each in changes if each[0] < start), (start, len(after))]
    directory = tmp_path_factory.mktemp("chain")
    await trio.to_thread.run_sync(write_sectors, directory / "before.raw", before)
    await trio.to_thread.run_sync(write_sectors, directory / "after.raw", after)
    made = await file_of(ChangedImage(bytes(after), changes), cluster_bytes, Backing("before.raw", "raw"))
    await trio.Path(directory / "increment.qcow2").write_bytes(made)
    for command in (["check", "increment.qcow2"], ["compare", "-F", "raw", "increment.qcow2", "after.raw"]):
        done = await trio.run_process(["qemu-img", *command], cwd=directory, capture_stdout=True, check=False)
        assert done.returncode == 0, done.stdout


def write_sectors(path: Path, content: bytearray) -> None:
    """QEMU counts in sectors: what a raw file has beyond whole ones is one more."""
    path.write_bytes(content + bytes(-len(content) % 512))


async def test_without_changes_it_holds_nothing_and_names_no_file(tmp_path: Path) -> None:
    made = await file_of(ChangedImage(b"x" * MIB, []), 64 * KIB)
    image = tmp_path / "increment.qcow2"
    await trio.Path(image).write_bytes(made)
    done = await trio.run_process(["qemu-img", "map", "--output=json", image], capture_stdout=True)
    assert b'"data": true' not in done.stdout
    assert len(made) < 6 * 64 * KIB


async def test_a_search_that_takes_long_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    class Slow(ChangedImage):
        async def dirty(self, start: int) -> Changes:
            await trio.sleep(0.4)
            return await super().dirty(start)

    image = Slow(b"x" * MIB, [(place * 4096, place * 4096 + 1) for place in range(4)])
    shown = tree(image, 4 * KIB)
    told = [(await shown.attributes(FILE)).settled for _ in range(6)]
    assert told == [False, False, False, False, True, True]
    assert image.looks == 5, "no look that had come to its end was taken again"


async def test_changes_that_cannot_be_had_are_an_error_of_who_reads() -> None:
    class Broken(BytesImage):
        async def dirty(self, _start: int) -> Changes:
            raise OSError(5, "lost")

    shown = tree(Broken(b"x" * MIB), 64 * KIB)
    attributes = await shown.attributes(FILE)
    assert (attributes.size_bytes, attributes.settled) == (0, False)
    with pytest.raises(OSError, match="lost"):
        await shown.read(FILE, 0, 512)
