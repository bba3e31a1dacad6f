"""A disk's dirty extents as a file: the form of the map, and true for all who read it at once."""

from __future__ import annotations

import errno
import json

import pytest
import trio

from snapmount.core.changes import Changes
from snapmount.core.extents import HOLE, ZERO, Extent, ExtentMap
from snapmount.publish.dirty import text
from snapmount.publish.dirty.text import DirtyText
from snapmount.publish.tree import File, Tree

BLOCK = 512


class MarkedImage:
    """A disk of which a look tells one block: the first is data, the second clean, the third zero."""

    name = "vda"
    size_bytes = 3 * BLOCK

    def __init__(self) -> None:
        self.looks = 0

    async def allocated_bytes(self) -> int | None:
        raise AssertionError("what is dirty tells all that is to be told")

    async def direct(self) -> None:
        return None

    async def extents(self) -> ExtentMap:
        raise AssertionError("the disk's other extents may take long")

    async def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("no byte of the disk is needed")

    async def dirty(self, start: int) -> Changes:
        self.looks += 1
        await trio.lowlevel.checkpoint()
        flags = {0: 0, 2 * BLOCK: HOLE | ZERO}.get(start)
        return Changes(start + BLOCK, () if flags is None else (Extent(start, BLOCK, flags),))


def tree(image: MarkedImage) -> Tree:
    return Tree([File("vda.dirty", DirtyText(image))], mtime_ns=1, uid=0, gid=0)


async def test_it_has_the_form_of_the_map_and_its_true_size() -> None:
    shown = tree(MarkedImage())
    attributes = await shown.attributes(2)
    read = bytes(await shown.read(2, 0, 10**6))
    assert (attributes.size_bytes, attributes.settled) == (len(read), True)
    assert [(each["start"], each["length"], each["zero"], each["data"]) for each in json.loads(read)] == [
        (0, BLOCK, False, True),
        (2 * BLOCK, BLOCK, True, False),
    ]
    assert bytes(await shown.read(2, 3, 100)) == read[3:103]


async def test_those_who_read_at_once_get_each_extent_once() -> None:
    image = MarkedImage()
    shown, found = tree(image), list[bytes]()

    async def read() -> None:
        found.append(bytes(await shown.read(2, 0, 10**6)))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
    await read()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(json.loads(found[0])) == 2
    assert image.looks == 3


async def test_a_disk_of_which_nothing_is_dirty_has_an_empty_list() -> None:
    class Clean(MarkedImage):
        async def dirty(self, start: int) -> Changes:
            return Changes(self.size_bytes, ())

    assert json.loads(bytes(await tree(Clean()).read(2, 0, 100))) == []


async def test_who_lists_it_does_not_wait_for_long_and_who_opens_it_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(MarkedImage):
        def __init__(self) -> None:
            super().__init__()
            self.may_end = trio.Event()

        async def dirty(self, start: int) -> Changes:
            if start == 2 * BLOCK:
                await self.may_end.wait()
            return await super().dirty(start)

    monkeypatch.setattr(text, "GLANCE_S", 0.01)
    image = Slow()
    shown = tree(image)
    attributes = await shown.attributes(2)
    assert (attributes.size_bytes, attributes.settled, image.looks) == (0, False, 2)
    image.may_end.set()
    size = await shown.file(2).content.size_bytes()
    assert image.looks == 3
    attributes = await shown.attributes(2)
    assert (attributes.size_bytes, attributes.settled) == (size, True)


async def test_of_a_lost_snapshot_it_has_no_size_and_cannot_be_read() -> None:
    class Lost(MarkedImage):
        async def dirty(self, start: int) -> Changes:
            raise OSError(errno.EIO, "lost")

    shown = tree(Lost())
    attributes = await shown.attributes(2)
    assert (attributes.size_bytes, attributes.settled) == (0, False)
    with pytest.raises(OSError, match="lost"):
        await shown.read(2, 0, 512)
