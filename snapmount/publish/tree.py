"""What a mounted snapshot looks like: its files, their attributes and content.  Publishers only translate."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ..core.extents import ExtentMap, aligned, coarse, json_map, json_map_size
from ..core.image import Direct, Image
from ..core.qcow2layout import Placement

ROOT_INODE = 1
BLOCK_BYTES = 512  # the unit of st_blocks, whatever st_blksize says (stat(3type))
# Holes are told of in whole units, as by file systems.  QEMU with direct I/O, which it aligns to 4096 on FUSE, aborts
# where one begins elsewhere (raw_co_block_status() in block/file-posix.c); so does its iSCSI initiator where one begins
# within a block.  A raw origin of 1,000,001 bytes has such a hole: QEMU rounds its size up to sectors.
HOLE_UNIT_BYTES = 4096


class UnknownInodeError(KeyError):
    """No file of the tree has that inode."""


@dataclass(frozen=True)
class Sizes:
    """What stat(2) tells of a file's content, in bytes."""

    size: int
    allocated: int
    settled: bool = True  # whether it is final, or only the best that is known so far


class Content(Protocol):
    """What a file holds."""

    async def sizes(self) -> Sizes:
        """What is known of its size within a moment.

        Never an error: a file that cannot be read must not keep a directory from being listed.
        """

    async def size_bytes(self) -> int:
        """Its true size.  Raises OSError."""

    async def extents(self) -> ExtentMap:
        """Which parts of it are data."""

    async def direct(self) -> Direct | None:
        """A faster way to its bytes than read(), where there is one.  Raises OSError."""

    async def placement(self) -> Placement | None:
        """Where in the file lies what direct() leads to; None: all at its own offset.  Raises OSError."""

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """The bytes [offset, offset + length), which lie within the file.  Raises OSError."""


class Constant:
    """Bytes that are held in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def sizes(self) -> Sizes:
        return Sizes(len(self._data), len(self._data))

    async def size_bytes(self) -> int:
        return len(self._data)

    async def extents(self) -> ExtentMap:
        return all_data(len(self._data))

    async def direct(self) -> None:
        return None

    async def placement(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class RawImage:
    """A disk, byte for byte.

    If `most_extents` is given, only its largest holes are told of.  While nobody knows how much of it is data, an
    `estimate` is told, in bytes: all of it if there is none.
    """

    def __init__(self, image: Image, most_extents: int | None = None, estimate: int | None = None) -> None:
        self._image = image
        self._most_extents = most_extents
        # not 0: tar(1) takes a file without blocks for one hole, and does not read it
        self._estimate = image.size_bytes if estimate is None else min(image.size_bytes, max(estimate, BLOCK_BYTES))
        self._extents: ExtentMap | None = None

    async def sizes(self) -> Sizes:
        size, allocated = self._image.size_bytes, await _allocated_bytes(self._image)
        return Sizes(size, allocated) if allocated is not None else Sizes(size, self._estimate, settled=False)

    async def size_bytes(self) -> int:
        return self._image.size_bytes

    async def extents(self) -> ExtentMap:
        if self._extents is None:
            extents = aligned(await self._image.extents(), HOLE_UNIT_BYTES)
            self._extents = extents if self._most_extents is None else coarse(extents, self._most_extents)
        return self._extents

    async def direct(self) -> Direct | None:
        return await self._image.direct()

    async def placement(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        return await self._image.read(offset, length)


class MapText:
    """A disk's extents as JSON text, made where it is read: never all of it in memory."""

    def __init__(self, image: Image) -> None:
        self._image = image

    async def sizes(self) -> Sizes:
        if await _allocated_bytes(self._image) is None:
            return Sizes(0, 0, settled=False)  # until it is opened, which waits for the extents
        size = await self.size_bytes()
        return Sizes(size, size)

    async def size_bytes(self) -> int:
        return json_map_size(await self._image.extents())

    async def extents(self) -> ExtentMap:
        return all_data(await self.size_bytes())

    async def direct(self) -> None:
        return None

    async def placement(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        return json_map(await self._image.extents(), offset, length)


async def _allocated_bytes(image: Image) -> int | None:
    """How much of it is data; None also if that cannot be had any more."""
    try:
        return await image.allocated_bytes()
    except OSError:
        return None


def all_data(size: int) -> ExtentMap:
    """The extents of a file of that size without holes."""
    extents = ExtentMap()
    if size:
        extents.append(size, 0)
    return extents


@dataclass(frozen=True)
class File:
    """A file of the tree."""

    name: str
    content: Content
    is_listed: bool = True  # whether a listing of the directory tells of it


@dataclass(frozen=True)
class Attributes:
    """The attributes of a file or of the root directory."""

    inode: int
    mode: int
    size_bytes: int
    allocated_bytes: int
    links: int
    settled: bool = True  # whether they will never change


@dataclass(frozen=True)
class Tree:
    """A directory of read-only files, all of one owner and one time.

    Files are readable by their owner alone, unless they are `is_open`: a disk image holds what its guest keeps secret.
    Inodes are numbers from 2 on in the files' order; the root directory has 1.
    """

    files: Sequence[File]
    mtime_ns: int
    uid: int
    gid: int
    is_open: bool = False  # to every user

    @cached_property
    def _inodes(self) -> Mapping[str, int]:
        return {file.name: number for number, file in enumerate(self.files, ROOT_INODE + 1)}

    def inode(self, name: str) -> int | None:
        """The inode of the file of that name, None if there is none."""
        return self._inodes.get(name)

    def inodes(self) -> range:
        """The inodes of all files."""
        return range(ROOT_INODE + 1, ROOT_INODE + 1 + len(self.files))

    def file(self, inode: int) -> File:
        """The file with that inode.  Raises KeyError if there is none."""
        if inode not in self.inodes():
            raise UnknownInodeError(inode)
        return self.files[inode - ROOT_INODE - 1]

    async def attributes(self, inode: int) -> Attributes:
        """The attributes of a file or of the root directory.  Raises KeyError for an inode of neither."""
        if inode == ROOT_INODE:
            return Attributes(inode, stat.S_IFDIR | (0o555 if self.is_open else 0o500), 0, 0, links=2)
        sizes = await self.file(inode).content.sizes()
        allocated = -(-sizes.allocated // BLOCK_BYTES) * BLOCK_BYTES
        mode = stat.S_IFREG | (0o444 if self.is_open else 0o400)
        return Attributes(inode, mode, sizes.size, allocated, links=1, settled=sizes.settled)

    async def read(self, inode: int, offset: int, length: int) -> bytes | bytearray | memoryview:
        """What read(2) gives at that place: short at the end of the file, empty past it.

        Raises KeyError for an inode that is not a file's, OSError as the content does.
        """
        content = self.file(inode).content
        length = min(length, await content.size_bytes() - offset)
        return await content.read(offset, length) if length > 0 else b""

    async def extents(self, inode: int) -> ExtentMap:
        """Which parts of a file are data.  Raises as read() does."""
        return await self.file(inode).content.extents()
