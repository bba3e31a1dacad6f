"""What is kept of the changes of a disk, and how an image tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapmount.core.changes import LOOK_EXTENTS, Changes, everything
from snapmount.core.extents import HOLE, ZERO, Extent, ExtentMap
from snapmount.sources.storage import changes
from snapmount.sources.storage.changes import ComparedImage, Known

SIZE = 1 << 20


def data(start: int, length: int) -> Extent:
    return Extent(start, length, 0)


def zero(start: int, length: int) -> Extent:
    return Extent(start, length, HOLE | ZERO)


class Plain:
    """An image that is data in its first half."""

    name = "vda"

    def __init__(self, size_bytes: int = SIZE) -> None:
        self.size_bytes = size_bytes

    async def extents(self) -> ExtentMap:
        found = ExtentMap()
        found.append(SIZE // 2, 0)
        found.append(self.size_bytes - SIZE // 2, HOLE | ZERO)
        return found

    async def dirty(self, start: int) -> Changes:
        return everything(await self.extents(), start)


def image(found: Known, size_bytes: int = SIZE) -> ComparedImage:
    return ComparedImage(Plain(size_bytes), found)  # type: ignore[arg-type]


async def all_of(compared: ComparedImage) -> list[Extent]:
    """Look after look, as who reads them does."""
    found, at = list[Extent](), 0
    while at < compared.size_bytes:
        look = await compared.dirty(at)
        assert look.end > at
        assert all(at <= each.start and each.end <= look.end for each in look.extents)
        found += look.extents
        at = look.end
    return found


def test_what_differs_is_cut_to_what_is_known_and_neighbours_are_one() -> None:
    told = [data(0, 10), Extent(10, 5, 0), Extent(15, 5, ZERO), zero(20, 5), data(90, 20), data(110, 5)]
    assert changes.known(told, 100) == Known(100, (data(0, 15), zero(15, 10), data(90, 10)))


def test_it_is_kept_and_read_back(tmp_path: Path) -> None:
    found = changes.known([data(0, 4096), zero(8192, 4096)], SIZE)
    changes.write(str(tmp_path), "vda", found)
    assert changes.read(str(tmp_path), "vda") == found


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"size_bytes": 1, "extents": [[1]]}'])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "vda.changes").write_bytes(content)
    assert changes.read(str(tmp_path), "vda") is None


async def test_an_image_tells_of_it_look_by_look() -> None:
    found = [data(at, 64) for at in range(0, 128 * (LOOK_EXTENTS + 10), 128)]
    compared = image(changes.known(found, SIZE))
    assert await all_of(compared) == found
    assert await compared.dirty(32) == Changes(found[LOOK_EXTENTS - 1].end, (data(32, 32), *found[1:LOOK_EXTENTS])), (
        "from the middle of one"
    )
    assert await compared.dirty(64) == Changes(found[LOOK_EXTENTS].end, tuple(found[1 : LOOK_EXTENTS + 1]))


async def test_what_a_disk_has_grown_by_has_changed_and_what_it_has_lost_is_not_told() -> None:
    known = changes.known([data(SIZE - 512, 512)], SIZE)
    assert await all_of(image(known, SIZE + 4096)) == [data(SIZE - 512, 512), zero(SIZE, 4096)]
    assert await image(known, SIZE + 4096).dirty(SIZE + 512) == Changes(SIZE + 4096, (zero(SIZE + 512, 3584),))
    zeros = changes.known([zero(SIZE - 512, 512)], SIZE)
    assert await all_of(image(zeros, SIZE + 4096)) == [zero(SIZE - 512, 4608)], "two that touch are of different kinds"
    assert await all_of(image(known, SIZE - 256)) == [data(SIZE - 512, 256)]
    assert await all_of(image(changes.known([], SIZE))) == []
