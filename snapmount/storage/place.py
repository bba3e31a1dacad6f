"""A directory of ours beside what is cloned, on the same file system: made, told from those of others, and removed.

Its name begins with a dot, so that neither `rm *` nor a backup of `*.img` takes what is in it.  It has a mark, an
extended attribute of its own name; what has none is not removed with what it holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core import names
from ..host import mounts, subvolumes

MARK = "user.snapmount"
_NAME = re.compile(r"\.snapmount-[0-9a-f]{8}-[a-z]+")


def path(parent: str, snapshot_id: str, driver: str) -> str:
    """Where it is: '/srv/vms/.snapmount-3f2a91bc-reflink'."""
    return str(Path(parent) / f".{names.directory(snapshot_id)}-{driver}")


def make(directory: str, group: int) -> None:
    """Make it: that group may pass through, nobody but the owner see what is in it.  Raises OSError, FileExistsError if
    anything is there.
    """
    Path(directory).mkdir(mode=0o700)
    with _directory(directory) as descriptor:
        owner = os.fstat(descriptor).st_uid
        if owner != os.geteuid():  # who may write the parent may have put another one in its place
            raise not_ours(directory)
        os.setxattr(descriptor, MARK, _mark(directory))
        if group != os.getegid():
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, 0o710)


@contextlib.contextmanager
def opened(directory: str) -> Iterator[int]:
    """A descriptor of it.  Raises OSError: FileNotFoundError if it is not there, PermissionError if what is there is
    not ours.
    """
    with _directory(directory) as descriptor:
        if not _is_marked(descriptor, directory):
            raise not_ours(directory)
        yield descriptor


def remove(directory: str, files: Sequence[str]) -> None:
    """Remove it, with the files of these names; none is fine.  Raises OSError if it is not ours, or holds more."""
    try:
        with _directory(directory) as descriptor:
            if os.listdir(descriptor):  # else it may have been left before it had its mark
                _empty(descriptor, directory, files)
        Path(directory).rmdir()
    except FileNotFoundError:
        return
    with _directory(os.path.dirname(directory)) as parent:
        _commit(parent)


def _commit(parent: int) -> None:
    """So that nothing is back after a crash, when there is no record of it any more, and the guest that needs the space
    has it soon.
    """
    try:
        subvolumes.commit(parent)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
        os.fsync(parent)


def _empty(descriptor: int, directory: str, files: Sequence[str]) -> None:
    if not _is_marked(descriptor, directory):
        raise not_ours(directory)
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=descriptor)
    if strange := sorted(os.listdir(descriptor)):
        shown = names.printable(strange[0])
        raise OSError(errno.ENOTEMPTY, f"there is something in it that is not snapmount's: {shown}", directory)


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    """A descriptor of it; a symbolic link is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise not_ours(path) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_marked(descriptor: int, directory: str) -> bool:
    try:
        mark = os.getxattr(descriptor, MARK)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return bool(_NAME.fullmatch(os.path.basename(directory))) and mark == _mark(directory)


def _mark(directory: str) -> bytes:
    return os.fsencode(os.path.basename(directory))


def not_ours(directory: str) -> PermissionError:
    """The error for what lies there and is not ours."""
    return PermissionError(errno.EPERM, "what is there is not snapmount's", directory)


# -- the mount that it lies on -----------------------------------------------------------------------------------------


def mountpoint(path: str) -> str:
    """Where the file system that the path lies on is mounted."""
    mount = mounts.holding(path, mounts.current())
    return mount.path if mount else "/"


def why_hidden(path: str, mounted_on: str) -> str | None:
    """Why what has been made at that path is out of sight: its file system is no longer mounted, or something else is
    mounted over it.  None if it is mounted as it was when mountpoint() told.
    """
    if mountpoint(path) == mounted_on:
        return None
    return f"the file system with {path}, which was mounted on {mounted_on}, is out of sight"
