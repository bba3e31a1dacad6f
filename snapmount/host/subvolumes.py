"""Subvolumes of btrfs: which one a file lies in, and what the file system tells of it.

The ioctls are those of include/uapi/linux/btrfs.h, which any user may call.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from . import mounts

ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID, that of each subvolume's top directory
_GET_SUBVOL_INFO = 0x81F8943C  # since Linux 4.18; struct btrfs_ioctl_get_subvol_info_args
_INFO = struct.Struct("=Q256x24xQ16s16s16xQQ144x")  # id; flags, uuid, the parent's; ctransid, otransid
_SNAPSHOT = 0x50009417  # BTRFS_IOC_SNAP_CREATE_V2
_NEW = struct.Struct("=qQQ32x4040s")  # struct btrfs_ioctl_vol_args_v2: the source, -, flags, the new one's name
_NEW_READ_ONLY = 2  # BTRFS_SUBVOL_RDONLY
_SYNC = 0x9408  # BTRFS_IOC_SYNC
_FS_INFO = 0x8400941F  # struct btrfs_ioctl_fs_info_args
_FS_ID = struct.Struct("=16x16s992x")
_READ_ONLY = 1  # BTRFS_ROOT_SUBVOL_RDONLY


@dataclass(frozen=True)
class Subvolume:
    """What the file system tells of one."""

    id: int
    uuid: str
    parent_uuid: str  # of the subvolume that it is a snapshot of
    is_read_only: bool
    changed_in: int  # the last transaction that changed something in it
    made_in: int  # the transaction that made it


def read(descriptor: int) -> Subvolume:
    """The subvolume that an open file or directory lies in.  Raises OSError: ENOTTY on another file system."""
    answer = fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, bytes(_INFO.size))
    number, flags, uuid, parent_uuid, changed_in, made_in = _INFO.unpack(answer)
    return Subvolume(number, uuid.hex(), parent_uuid.hex(), bool(flags & _READ_ONLY), changed_in, made_in)


def is_top(descriptor: int) -> bool:
    """Whether it is the top directory of a subvolume, if it is on btrfs."""
    status = os.fstat(descriptor)
    return stat.S_ISDIR(status.st_mode) and status.st_ino == ROOT_INODE


def file_system(descriptor: int) -> bytes:
    """What tells the file system from others.  Raises OSError as read() does."""
    found: bytes = _FS_ID.unpack(fcntl.ioctl(descriptor, _FS_INFO, bytes(_FS_ID.size)))[0]
    return found


def snapshot(source: int, directory: int, name: str) -> None:
    """Make a read-only snapshot, of that name in a directory, of the subvolume whose top directory is `source`: both
    are descriptors.  It is on the disk when this returns, with all that was dirty.  Blocks.  Raises OSError as read()
    does; ETXTBSY if the kernel swaps to a file in the subvolume.
    """
    fcntl.ioctl(directory, _SNAPSHOT, bytearray(_NEW.pack(source, 0, _NEW_READ_ONLY, os.fsencode(name))))


def commit(descriptor: int) -> None:
    """Let the file system write all that is dirty, and begin to free what has been removed, for which it else takes its
    time: 30 seconds, if it was mounted without another `commit` (btrfs(5)).  Blocks.  Raises OSError as read() does.
    """
    fcntl.ioctl(descriptor, _SYNC)


def top(path: str) -> str | None:
    """The top directory of the subvolume that a file lies in, by its absolute path without symbolic links.

    None if something is mounted between the two, so that the path tells nothing of where the file is in the subvolume.
    Raises OSError: ENOTTY on another file system.
    """
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        read(descriptor)
    finally:
        os.close(descriptor)
    mount = mounts.holding(path, mounts.current())
    if mount is None or mount.path == path:
        return None
    for directory in map(str, Path(path).parents):
        if os.stat(directory).st_ino == ROOT_INODE:
            return directory
        if directory == mount.path:
            break
    return None
