"""Files that share the blocks of others (reflinks), on file systems that have that: the ioctls FICLONE and FICLONERANGE
(ioctl_ficlone(2)), and the attribute "no copy on write" (+C in chattr(1), btrfs(5)), in which both files must agree.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FICLONE, _FICLONERANGE = 0x40049409, 0x4020940D  # _IOW(0x94, 9, int), _IOW(0x94, 13, struct file_clone_range)
_RANGE = struct.Struct("=qQQQ")  # struct file_clone_range: source, its offset, length (0: up to its end), our offset
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_*: _IOR('f', 1, long), _IOW('f', 2, long); an int is meant
_FLAGS = struct.Struct("=i4x")
_NOCOW = 0x00800000  # FS_NOCOW_FL
_ATTEMPTS = 10


def clone(target: int, source: int) -> None:
    """Let the empty file `target` share all blocks that `source` has at one moment; both are descriptors.

    Blocks for as long as the source has dirty pages to write and extents to share; so long writers of the source wait.
    Raises OSError.
    """
    fcntl.ioctl(target, _FICLONE, source)


def check(target: int, source: int) -> None:
    """Raise the OSError that clone() would raise because of the files and their file system; change nothing.

    What lies beyond the source's end is shared: nothing.  The kernel looks at all else first
    (generic_remap_file_range_prep() in fs/remap_range.c).
    """
    for attempt in range(_ATTEMPTS):
        end = os.fstat(source).st_size
        try:
            fcntl.ioctl(target, _FICLONERANGE, _RANGE.pack(source, end, 0, 0))
            return
        except OSError as error:
            has_grown = error.errno == errno.EINVAL and os.fstat(source).st_size != end
            if not has_grown or attempt == _ATTEMPTS - 1:
                raise


def match_nocow(target: int, source: int) -> None:
    """Let the empty file `target` be as the source is: with copy on write, or without.  Raises OSError."""
    wanted, flags = _flags(source) & _NOCOW, _flags(target)
    if flags & _NOCOW != wanted:
        fcntl.ioctl(target, _SETFLAGS, _FLAGS.pack(flags & ~_NOCOW | wanted))


def _flags(descriptor: int) -> int:
    """The file's attributes (ioctl_iflags(2)); 0 if the file system has none."""
    try:
        flags: int = _FLAGS.unpack(fcntl.ioctl(descriptor, _GETFLAGS, bytes(_FLAGS.size)))[0]
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return 0
        raise
    return flags
