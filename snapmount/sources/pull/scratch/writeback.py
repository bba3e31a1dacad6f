"""Hears from the kernel that it could not write to a disk what a program has put into a file.

write(2) puts data into the page cache, and the kernel writes it back later, within half a minute or so; if the disk
below fails then (a thin pool that is full, a disk that dies), the program is told nothing, and what it reads is right
only until the kernel drops the pages.  The error is kept for every descriptor that was open then, read-only ones too:
https://docs.kernel.org/core-api/errseq.html
"""

from __future__ import annotations

import ctypes
import errno
import os

_NOWHERE = 1 << 62  # an offset where no file has pages
_WAIT_BEFORE = 1  # SYNC_FILE_RANGE_WAIT_BEFORE, linux/fs.h
_ABOUT_THE_CALL = frozenset({errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ESPIPE})

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def check(descriptor: int) -> None:
    """Raise the OSError of a write that has failed since the descriptor was opened or last checked; or before it was
    opened, where nobody has been told.

    It takes microseconds, starts no write and waits for none: sync_file_range(2) waits for what is being written in a
    range, here an empty one, and tells of errors of the whole file, as fsync(2) does (file_fdatawait_range() in Linux's
    mm/filemap.c, since 4.16).  Where the kernel cannot tell, nothing is raised.
    """
    if _sync_file_range(descriptor, _NOWHERE, 1, _WAIT_BEFORE) == 0:
        return
    number = ctypes.get_errno()
    if number not in _ABOUT_THE_CALL:
        raise OSError(number, os.strerror(number))
