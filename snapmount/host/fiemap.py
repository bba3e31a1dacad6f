"""Which blocks of its file system a file has: the ioctl FS_IOC_FIEMAP
(https://docs.kernel.org/filesystems/fiemap.html, include/uapi/linux/fiemap.h).
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator
from typing import NamedTuple

UNWRITTEN = 0x800  # allocated, but reads as zeros
# Where the blocks are not known, or tell nothing of the bytes: UNKNOWN, DELALLOC, ENCODED (compressed), DATA_ENCRYPTED,
# NOT_ALIGNED, DATA_INLINE, DATA_TAIL
VAGUE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400

_FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_SYNC = 0x1  # FIEMAP_FLAG_SYNC: what is only in memory gets its blocks first
_LAST = 0x1  # FIEMAP_EXTENT_LAST
_TO_THE_END = (1 << 64) - 1
_REQUEST = struct.Struct("=QQIIII")  # struct fiemap: start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # struct fiemap_extent: logical, physical, length, flags
_AT_ONCE = 4096  # extents that one call asks for
_FS_IOC_FSGETXATTR = 0x801C581F  # _IOR('X', 31, struct fsxattr), ioctl_xfs_fsgetxattr(2)
_FSXATTR = struct.Struct("=I24x")  # struct fsxattr: its flags
_REALTIME = 1  # FS_XFLAG_REALTIME


class Mapped(NamedTuple):
    """A part of a file that has blocks; a hole is what lies between two of them.

    The address is a byte of the file's device; on btrfs one of the file system, which may have several devices.
    """

    start: int  # in the file, in bytes
    length: int  # bytes
    address: int
    flags: int


def count(descriptor: int, length: int = _TO_THE_END) -> int:
    """How many extents the first `length` bytes of a file have, those counted too that are only in memory yet.

    Raises OSError: EOPNOTSUPP or ENOTTY if the file system does not tell.
    """
    request = bytearray(_REQUEST.pack(0, length, 0, 0, 0, 0))
    fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, request)
    extents: int = _REQUEST.unpack(request)[3]
    return extents


def extents(descriptor: int) -> Iterator[Mapped]:
    """All of them, in the order of the file, up to its end or beyond: the last block may reach further, and so may what
    fallocate(2) has put there.  Blocks.  Raises OSError as count() does.
    """
    start, flags = 0, _SYNC
    while True:
        room = bytes(_AT_ONCE * _EXTENT.size)
        request = bytearray(_REQUEST.pack(start, _TO_THE_END - start, flags, 0, _AT_ONCE, 0) + room)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, request)
        found = _REQUEST.unpack_from(request)[3]
        for number in range(found):
            logical, physical, length, kind = _EXTENT.unpack_from(request, _REQUEST.size + number * _EXTENT.size)
            yield Mapped(logical, length, physical, kind)
        if not found or kind & _LAST:
            return
        start, flags = logical + length, 0


def is_realtime(descriptor: int) -> bool:
    """Whether the file's blocks, and so their addresses, are those of XFS's realtime device.  Raises OSError."""
    try:
        (flags,) = _FSXATTR.unpack(fcntl.ioctl(descriptor, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return False
        raise
    return bool(flags & _REALTIME)
