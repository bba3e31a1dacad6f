"""QEMU's lock of an image file, held by us as a reader holds it that wants the file to stay as it is: no QEMU can open
the file for writing meanwhile, others may read it.

QEMU locks single bytes of the file with OFD locks (fcntl_locking(2)): one byte for each permission that somebody has,
and one for each that somebody does not share; RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE and raw_check_lock_bytes() in
block/file-posix.c, enum BLK_PERM_* in include/block/block-common.h.  libvirt's VMs see block devices as other nodes, in
a /dev of their own, so that a lock of a device keeps none of them away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct

from ..core import names
from ..errors import NotFoundError, StateError

_HAS = 100
_DOES_NOT_SHARE = 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_OURS = (_HAS + _CONSISTENT_READ, _DOES_NOT_SHARE + _WRITE, _DOES_NOT_SHARE + _RESIZE)
_CONFLICTS = (_DOES_NOT_SHARE + _CONSISTENT_READ, _HAS + _WRITE, _HAS + _RESIZE)
_UNLOCKABLE = (errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without locks say

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64 bit systems


def held(path: str) -> int:
    """A descriptor of the image, a file or a block device, open for reading, with the lock, which release() drops.
    Blocks.

    On a file system without locks there is none, as there is none for QEMU either.  Raises NotFoundError or StateError
    if the image cannot be opened, StateError if somebody writes to it.
    """
    descriptor = _opened(path)
    try:
        for byte in _OURS:
            _set(descriptor, byte, fcntl.F_RDLCK)
        if any(_is_locked(descriptor, byte) for byte in _CONFLICTS):
            raise StateError(
                f"{path} is open for writing in another process, a VM perhaps; QEMU's lock does not let both have it",
                f"{names.command('fuser', '--verbose', path)}   (which process that is)",
            )
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            os.close(descriptor)
            raise StateError(f"{path} cannot be locked: {error.strerror}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def release(descriptor: int) -> None:
    """Drop the lock, also if duplicates of the descriptor remain open for a while."""
    with contextlib.suppress(OSError):
        for byte in _OURS:
            _set(descriptor, byte, fcntl.F_UNLCK)


def _opened(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO in its place must not hang us
    except FileNotFoundError:
        raise NotFoundError(f"the image {path} does not exist") from None
    except OSError as error:
        raise StateError(f"the image {path} cannot be opened: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(descriptor)
        raise StateError(f"the image {path} is neither a file nor a block device")
    return descriptor


def _set(descriptor: int, byte: int, kind: int) -> None:
    """Raises OSError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_locked(descriptor: int, byte: int) -> bool:
    """Whether anybody else has a lock of that byte.  Raises OSError."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
