"""Locks in the runtime directory, flock(2) all of them: the kernel drops them with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from ..errors import StateError


def cannot_write(directory: Path, error: OSError) -> StateError:
    """The error for a directory of ours that cannot be written."""
    return StateError(f"cannot write the runtime record {directory}: {error.strerror}")


def make_private(directory: Path) -> None:
    """Make the directory, where there is none, and close it to others.  Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.geteuid() or not directory.is_dir() or directory.is_symlink():
        raise PermissionError(1, "it belongs to another user", str(directory))
    directory.chmod(0o700)


def lock(directory: Path, flags: int = 0) -> int:
    """A descriptor of the lock of the snapshot with that directory, held by us, and our pid in the file, unless nothing
    can be written any more.  Raises as locked() does.
    """
    try:
        descriptor = locked(directory / "lock", os.O_RDWR | flags)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        descriptor = locked(directory / "lock", os.O_RDONLY)
    with contextlib.suppress(OSError):  # where there is no room, nobody learns who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def locked(path: Path, flags: int) -> int:
    """A descriptor with the exclusive flock(2) of the file.  Raises BlockingIOError if somebody else has it."""
    descriptor = os.open(path, os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
