"""Removing directories of ours that others may be emptying at the same time, as libvirt does."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path


def remove(directory: Path) -> None:
    """Remove the directory with all in it; none is fine.  A symbolic link in its place is not followed.

    Raises OSError, with its errno, the reason and the file.
    """
    while os.path.lexists(directory):
        with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
            try:
                shutil.rmtree(directory)
            except OSError as error:
                if error.errno is None:  # all that rmtree() tells of a link; since Python 3.13 not even that
                    raise OSError(errno.ELOOP, "there is a symbolic link in its place", str(directory)) from error
                raise
