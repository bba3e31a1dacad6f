"""A disk as a qcow2 file of the tree: its bytes are those of the layout and the image, wherever one reads."""

from __future__ import annotations

import errno

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.clusters import Clusters
from snapmount.core.extents import HOLE, ZERO, ExtentMap
from snapmount.core.qcow2layout import Layout, Metadata
from snapmount.publish.qcow2 import Qcow2Image
from snapmount.publish.tree import File, Tree

from ..strategies import PROPERTY
from .test_tree import BrokenImage, BytesImage

KIB, MIB = 1 << 10, 1 << 20
FILE = 2  # its inode


class PatchyImage(BytesImage):
    """A disk of data and holes; it counts how often it is read."""

    def __init__(self, parts: list[tuple[int, int]], size: int) -> None:
        self._extents = ExtentMap()
        content = bytearray(size)
        for number, (length, flags) in enumerate([*parts, (size, HOLE | ZERO)]):
            start, end = self._extents.end, min(size, self._extents.end + length)
            if not flags & ZERO:
                content[start:end] = bytes([number % 255 + 1]) * (end - start)
            self._extents.append(end - start, flags)
        super().__init__(bytes(content))
        self.reads = 0

    async def extents(self) -> ExtentMap:
        return self._extents

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return await super().read(offset, length)

    def file(self, cluster_bytes: int) -> bytes:
        """The whole qcow2 file."""
        layout = Layout(Clusters.of_data(self._extents, cluster_bytes))
        made = b""
        for part in layout.parts(0, layout.size_bytes):
            data = part.data if isinstance(part, Metadata) else self._content[part.offset : part.end]
            made += data + bytes(part.length - len(data))
        return made


def tree(image: BytesImage | BrokenImage, cluster_bytes: int) -> Tree:
    return Tree([File("vda.qcow2", Qcow2Image(image, cluster_bytes))], 1, 1000, 1001)


parts = st.lists(
    st.tuples(st.integers(1, 40_000) | st.sampled_from([4 * KIB, MIB]), st.sampled_from([0, HOLE | ZERO])), max_size=9
)
sizes = st.integers(0, 3 * MIB) | st.sampled_from([0, 1, 511, 64 * KIB, MIB])


@PROPERTY
@given(parts, sizes, st.sampled_from([4 * KIB, 64 * KIB]), st.data())
async def test_a_read_gives_what_the_same_slice_of_the_whole_file_does(
    parts: list[tuple[int, int]], size: int, cluster_bytes: int, data: st.DataObject
) -> None:
    image = PatchyImage(parts, size)
    shown, whole = tree(image, cluster_bytes), image.file(cluster_bytes)
    assert (await shown.attributes(FILE)).size_bytes == len(whole)
    offset = data.draw(st.integers(0, len(whole) + 10))
    length = data.draw(st.integers(0, MIB))
    assert await shown.read(FILE, offset, length) == whole[offset : offset + length]
    assert await shown.read(FILE, 0, len(whole)) == whole


@PROPERTY
@given(parts, sizes, st.sampled_from([4 * KIB, 64 * KIB]))
async def test_it_allocates_what_is_no_hole(parts: list[tuple[int, int]], size: int, cluster_bytes: int) -> None:
    image = PatchyImage(parts, size)
    shown, whole = tree(image, cluster_bytes), image.file(cluster_bytes)
    extents = await shown.extents(FILE)
    assert extents.end == len(whole)
    assert not any(whole[extent.start : extent.end].strip(b"\0") for extent in extents if extent.is_zero)
    held = (await shown.attributes(FILE)).allocated_bytes
    assert 0 <= extents.data_bytes - held < 4096, "but for what the disk's last page has beyond its end"


async def test_clusters_that_are_near_each_other_are_read_at_once() -> None:
    count = 128
    image = PatchyImage([(4 * KIB, 0), (4 * KIB, HOLE | ZERO)] * count, 8 * KIB * count)
    shown, whole = tree(image, 4 * KIB), image.file(4 * KIB)
    assert await shown.read(FILE, 0, len(whole)) == whole
    assert image.reads == 1


async def test_as_long_as_nobody_knows_the_extents_its_size_is_0() -> None:
    class Unknown(PatchyImage):
        async def allocated_bytes(self) -> None:
            return None

    attributes = await tree(Unknown([(MIB, 0)], MIB), 64 * KIB).attributes(FILE)
    assert (attributes.size_bytes, attributes.allocated_bytes, attributes.settled) == (0, 0, False)


async def test_a_disk_whose_extents_cannot_be_had_has_no_size_and_no_bytes() -> None:
    shown = tree(BrokenImage(), 64 * KIB)
    attributes = await shown.attributes(FILE)
    assert (attributes.size_bytes, attributes.settled) == (0, False)
    with pytest.raises(OSError, match="lost") as caught:
        await shown.read(FILE, 0, 512)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="lost"):
        await shown.file(FILE).content.size_bytes()


async def test_it_is_laid_out_once_for_all_who_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    of_data = Clusters.of_data

    def count(extents: ExtentMap, cluster_bytes: int) -> Clusters:
        made.append(cluster_bytes)
        return of_data(extents, cluster_bytes)

    monkeypatch.setattr(Clusters, "of_data", count)
    shown = tree(PatchyImage([(MIB, 0)], MIB), 64 * KIB)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(shown.read, FILE, 0, 512)
            nursery.start_soon(shown.attributes, FILE)
    assert made == [64 * KIB]
