"""What a mounted snapshot looks like: its files, their attributes and content.  Publishers that show files only
translate.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from .image import Image

ROOT_INODE = 1
BLOCK_BYTES = 512  # the unit of st_blocks, whatever st_blksize says (stat(3type))


@dataclass(frozen=True)
class Attributes:
    """The attributes of a file or of the root directory."""

    inode: int
    mode: int
    size_bytes: int
    allocated_bytes: int
    links: int


@dataclass(frozen=True)
class File:
    """A file of the tree: an image, or bytes that are held in memory."""

    name: str
    content: Image | bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.size_bytes


@dataclass(frozen=True)
class Tree:
    """A directory of read-only files, all of one owner and one time.

    Files are readable by their owner alone: a disk image holds what its guest keeps secret.  Inodes are numbers from 2
    on in the files' order; the root directory has 1.
    """

    files: Sequence[File]
    mtime_ns: int
    uid: int
    gid: int
    _inodes: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_inodes", {file.name: number for number, file in enumerate(self.files, ROOT_INODE + 1)}
        )

    def inode(self, name: str) -> int | None:
        """The inode of the file of that name, None where there is none."""
        return self._inodes.get(name)

    def inodes(self) -> range:
        """The inodes of all files."""
        return range(ROOT_INODE + 1, ROOT_INODE + 1 + len(self.files))

    def file(self, inode: int) -> File:
        """The file with that inode.  Raises KeyError where there is none."""
        if inode not in self.inodes():
            raise KeyError(inode)
        return self.files[inode - ROOT_INODE - 1]

    def attributes(self, inode: int) -> Attributes:
        """The attributes of a file or of the root directory.  Raises KeyError for an inode of neither."""
        if inode == ROOT_INODE:
            return Attributes(inode, stat.S_IFDIR | 0o500, 0, 0, links=2)
        size = self.file(inode).size_bytes
        return Attributes(inode, stat.S_IFREG | 0o400, size, -(-size // BLOCK_BYTES) * BLOCK_BYTES, links=1)

    async def read(self, inode: int, offset: int, length: int) -> bytes | bytearray:
        """What read(2) gives at that place: short at the end of the file, empty past it.

        Raises KeyError for an inode that is not a file's, OSError as the image does.
        """
        file = self.file(inode)
        if isinstance(file.content, bytes):
            return file.content[offset : offset + length]
        length = min(length, file.size_bytes - offset)
        return await file.content.read(offset, length) if length > 0 else b""
