"""Opens what lies in directories in which others may put anything in the place of what we look for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def opened(path: str | Path, *, follow: bool = False) -> int:
    """A descriptor for reading.  No symbolic link is followed, unless asked to, and no FIFO is waited for.  Raises
    OSError.
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))


def opened_file(path: str | Path) -> int:
    """The same of a regular file.  Raises OSError; PermissionError for anything else."""
    descriptor = opened(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "it is no regular file")
    return descriptor
