"""What all drivers that clone files of a file system need: which paths are files, how much room there is."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from ..errors import SpaceError
from ..host import mounts
from .driver import Room


def why_no_file(path: str) -> str | None:
    """Why there is no image file at that path, in words that follow it; None if there is.  Blocks."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    return "is a block device, not a file" if stat.S_ISBLK(mode) else "is no regular file"


def fstype(path: str) -> str:
    """The name of the file system's type: 'ext4'."""
    mount = mounts.holding(path, mounts.current())
    return mount.fstype if mount else "an unknown file system"


@contextlib.contextmanager
def opened(path: str, directory: int | None = None, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of a file, in that directory if the path is relative.  Raises OSError."""
    # whatever has been put in the file's place meanwhile: not the target of a link, and no wait for a pipe's other end
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def room(place: str) -> Room:
    """What an ordinary user, as QEMU's is, may still write there.  Blocks.  Raises SpaceError."""
    try:
        status = os.statvfs(place)
    except OSError as error:
        raise SpaceError(f"{place} does not tell how much space it has: {error.strerror}") from error
    return Room(place, status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)
