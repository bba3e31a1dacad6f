"""The tree of a mount: read-only files whose bytes are those of their content, wherever one reads."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.changes import Changes, everything
from snapmount.core.extents import HOLE, ZERO, ExtentMap
from snapmount.core.image import Image
from snapmount.publish.tree import BLOCK_BYTES, ROOT_INODE, Attributes, Constant, Content, File, MapText, RawImage, Tree

from ..strategies import PROPERTY


class BytesImage:
    """A disk that is held in memory; it insists on what Image promises to be asked."""

    def __init__(self, content: bytes) -> None:
        self.name = "vda"
        self.size_bytes = len(content)
        self._content = content

    async def allocated_bytes(self) -> int | None:
        return (await self.extents()).data_bytes

    async def dirty(self, start: int) -> Changes:
        return everything(await self.extents(), start)

    async def direct(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        assert offset + length <= self.size_bytes
        return self._content[offset : offset + length]

    async def extents(self) -> ExtentMap:
        return all_data(len(self._content))


def all_data(size: int) -> ExtentMap:
    extents = ExtentMap()
    if size:
        extents.append(size, 0)
    return extents


class BrokenImage:
    """A disk whose point in time is lost."""

    name = "vda"
    size_bytes = 4096

    async def allocated_bytes(self) -> int | None:
        return (await self.extents()).data_bytes

    async def dirty(self, start: int) -> Changes:
        return everything(await self.extents(), start)

    async def direct(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        raise OSError(errno.EIO, "lost")

    async def extents(self) -> ExtentMap:
        raise OSError(errno.EIO, "lost")


def tree(*files: File) -> Tree:
    return Tree(files, mtime_ns=1, uid=1000, gid=1001)


THREE = tree(
    File("vda.raw", RawImage(BytesImage(b"x" * 1000))),
    File("vdb.raw", RawImage(BytesImage(b""))),
    File("domain.xml", Constant(b"<domain/>")),
)


@PROPERTY
@given(
    st.binary(max_size=64),
    st.sampled_from([lambda content: RawImage(BytesImage(content)), Constant]),
    st.integers(min_value=0, max_value=100),
    st.integers(min_value=0, max_value=100),
)
async def test_a_read_gives_what_the_same_slice_of_the_content_does(
    content: bytes, kind: Callable[[bytes], Content], offset: int, length: int
) -> None:
    shown = tree(File("other", Constant(b"other")), File("file", kind(content)))
    inode = shown.inode("file")
    assert inode is not None
    assert await shown.read(inode, offset, length) == content[offset : offset + length]


async def test_an_image_is_not_asked_for_what_lies_past_its_end() -> None:
    for offset in (4096, 5000, 1 << 62):
        assert await tree(File("vda.raw", RawImage(BrokenImage()))).read(ROOT_INODE + 1, offset, 512) == b""


async def test_an_image_s_error_passes() -> None:
    with pytest.raises(OSError, match="lost") as caught:
        await tree(File("vda.raw", RawImage(BrokenImage()))).read(ROOT_INODE + 1, 0, 512)
    assert caught.value.errno == errno.EIO


def test_files_are_found_by_name_and_by_inode() -> None:
    assert THREE.inode("vdb.raw") == 3
    assert THREE.file(3).name == "vdb.raw"
    assert [THREE.file(inode).name for inode in THREE.inodes()] == ["vda.raw", "vdb.raw", "domain.xml"]
    assert [THREE.inode(file.name) for file in THREE.files] == list(THREE.inodes())


async def test_what_is_not_there_is_not_found() -> None:
    assert THREE.inode("vdc.raw") is None
    assert THREE.inode("") is None
    for inode in (-1, 0, ROOT_INODE, 5, 1 << 63):
        with pytest.raises(KeyError):
            THREE.file(inode)
    for inode in (-1, 0, 5):
        with pytest.raises(KeyError):
            await THREE.attributes(inode)


@pytest.mark.parametrize("inode", [0, ROOT_INODE, 5])
async def test_what_is_not_a_file_cannot_be_read(inode: int) -> None:
    with pytest.raises(KeyError):
        await THREE.read(inode, 0, 1)


async def test_the_root_is_a_directory_and_all_else_a_file_of_its_size() -> None:
    assert stat.S_ISDIR((await THREE.attributes(ROOT_INODE)).mode)
    assert await THREE.attributes(2) == Attributes(2, stat.S_IFREG | 0o400, 1000, 1024, links=1)
    assert await THREE.attributes(3) == Attributes(3, stat.S_IFREG | 0o400, 0, 0, links=1)
    assert await THREE.attributes(4) == Attributes(4, stat.S_IFREG | 0o400, 9, 512, links=1)


async def test_nobody_may_write_and_nobody_but_the_owner_may_read() -> None:
    for inode in (ROOT_INODE, *THREE.inodes()):
        assert (await THREE.attributes(inode)).mode & 0o277 == 0


@PROPERTY
@given(st.integers(min_value=0, max_value=4096))
async def test_a_file_allocates_whole_blocks_and_less_than_one_more_than_its_size(size: int) -> None:
    image: Image = BytesImage(bytes(size))
    allocated = (await tree(File("vda.raw", RawImage(image))).attributes(ROOT_INODE + 1)).allocated_bytes
    assert allocated % BLOCK_BYTES == 0
    assert size <= allocated < size + BLOCK_BYTES


class SparseImage(BytesImage):
    """A disk of one block of data and two of zeros."""

    def __init__(self) -> None:
        super().__init__(b"x" * BLOCK_BYTES + bytes(2 * BLOCK_BYTES))

    async def extents(self) -> ExtentMap:
        extents = ExtentMap()
        extents.append_status([BLOCK_BYTES, 0, 2 * BLOCK_BYTES, HOLE | ZERO])
        return extents


async def test_a_sparse_disk_allocates_its_data_and_has_a_map() -> None:
    shown = tree(File("vda.raw", RawImage(SparseImage())), File("vda.map", MapText(SparseImage())))
    disk, text = [await shown.attributes(inode) for inode in shown.inodes()]
    assert (disk.size_bytes, disk.allocated_bytes) == (3 * BLOCK_BYTES, BLOCK_BYTES)
    read = await shown.read(text.inode, 0, 10**6)
    assert len(read) == text.size_bytes <= text.allocated_bytes
    assert [(extent["start"], extent["zero"]) for extent in json.loads(bytes(read))] == [(0, False), (512, True)]


@pytest.mark.parametrize(("estimate", "told"), [(1000, 1024), (10**6, 4096), (0, BLOCK_BYTES), (None, 4096)])
async def test_until_its_data_is_known_an_estimate_is_told_and_never_more_than_all_or_nothing(
    estimate: int | None, told: int
) -> None:
    shown = tree(File("vda.raw", RawImage(BrokenImage(), estimate=estimate)))
    attributes = await shown.attributes(2)
    assert (attributes.size_bytes, attributes.allocated_bytes, attributes.settled) == (4096, told, False)
    shown = tree(File("vda.raw", RawImage(SparseImage(), estimate=estimate)))
    attributes = await shown.attributes(2)
    assert (attributes.allocated_bytes, attributes.settled) == (BLOCK_BYTES, True)


async def test_a_disk_whose_extents_cannot_be_had_counts_as_all_data_and_its_map_has_no_size_yet() -> None:
    shown = tree(File("vda.raw", RawImage(BrokenImage())), File("vda.map", MapText(BrokenImage())))
    disk, text = [await shown.attributes(inode) for inode in shown.inodes()]
    assert (disk.size_bytes, disk.allocated_bytes, disk.settled) == (4096, 4096, False)
    assert (text.size_bytes, text.settled) == (0, False)
    with pytest.raises(OSError, match="lost"):
        await shown.read(text.inode, 0, 512)
