"""The driver for image files on file systems with reflinks, such as XFS and btrfs: each file is cloned with FICLONE.

How long that takes, and keeps the guest from writing, depends on how many extents the file has.  The clones lie in
directories of ours beside the images, place.py.  All images of one file system are one Clone.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..core import names
from ..core.document import to_document
from ..core.extents import Extent
from ..core.fingerprint import Fingerprint
from ..errors import LeftoverError, SpaceError, StateError, UnreachableError
from ..host import fiemap, reflinks
from ..images import fingerprint
from . import calls, differences, files, place, shapes
from .driver import Clone, Offer, Room, Task
from .shapes import ReflinkKept

__all__ = [
    "activate",
    "by_hand",
    "changed",
    "create",
    "plan",
    "prepare",
    "remove",
    "rooms",
    "why_lost",
    "why_not",
]

NAME = "reflink"
# Measured: 10 to 50 us an extent, of images with 3,000 to 65,000 extents, on XFS and btrfs, Linux 6.18, a busy host.
EXTENT_S = 50e-6
FILE_S = 0.005  # and that much for a file of few extents
COMPARABLE = ("xfs", "btrfs")  # whose blocks' addresses name one device each, see differences.py
NO_REFLINKS = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS)


def _kept(clone: Clone) -> ReflinkKept:
    return shapes.of(ReflinkKept, clone)


def _directories(clone: Clone) -> list[str]:
    """Those of ours."""
    return list(dict.fromkeys(map(os.path.dirname, clone.frozen)))


# -- what could be made ------------------------------------------------------------------------------------------------


async def why_not(origin: str) -> str | None:
    """See Driver."""
    return await calls.on_path(origin, _why_not, origin)


def _why_not(origin: str) -> str | None:
    """Tried with a file that has no name, so that nothing can be left of it."""
    if why := files.why_no_file(origin):
        return why
    directory = os.path.dirname(origin)
    try:
        target = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        lacks = error.errno in (*NO_REFLINKS, errno.EISDIR)  # file systems that have no files without a name
        return _lacks(origin) if lacks else f"lies in {directory}, which cannot be written to: {error.strerror}"
    try:
        with files.opened(origin) as source:
            reflinks.match_nocow(target, source)
            reflinks.check(target, source)
            os.setxattr(target, place.MARK, b"")
            fiemap.count(source, 1)
    except OSError as error:
        return _lacks(origin) if error.errno in NO_REFLINKS else f"cannot be cloned: {error.strerror}"
    finally:
        os.close(target)
    return None


def _lacks(origin: str) -> str:
    return f"lies on {files.fstype(origin)} without reflinks"


async def plan(task: Task) -> Sequence[Offer]:
    """See Driver.  An Offer for each file system: its journal lets no two files be cloned at once."""
    by_mount: dict[str, list[str]] = {}
    for origin in task.origins:
        by_mount.setdefault(place.mountpoint(origin), []).append(origin)
    return [await calls.on_path(mount, _offer, task, mount, origins) for mount, origins in by_mount.items()]


def _offer(task: Task, mounted_on: str, origins: Sequence[str]) -> Offer:
    kept = ReflinkKept(mounted_on, task.reader.uid, task.reader.gid)
    extents = {origin: _count(origin) for origin in origins}
    return Offer(
        Clone(NAME, tuple(origins), tuple(_frozen(task, origin) for origin in origins), to_document(kept)),
        pause_s=sum(FILE_S + count * EXTENT_S for count in extents.values()),
        remedy=_defragment(max(extents, key=lambda origin: extents[origin])),
        guest_pays=_guest_pays(mounted_on),
        is_comparable=files.fstype(mounted_on) in COMPARABLE,
    )


def _guest_pays(mounted_on: str) -> str:
    """XFS allocates 32 blocks for one that is overwritten (XFS_DEFAULT_COWEXTSZ_HINT in Linux), unless the file has a
    hint of its own (fsx_cowextsize in ioctl_xfs_fsgetxattr(2)), which QEMU sets none of.
    """
    more = ", of 128 KiB for each place that is written to first" if files.fstype(mounted_on) == "xfs" else ""
    return f"what it overwrites goes to new blocks of {mounted_on}{more}, which adds extents to its images"


def _frozen(task: Task, origin: str) -> str:
    directory, name = os.path.split(origin)
    return str(Path(place.path(directory, task.snapshot_id, NAME)) / name)


def _count(origin: str) -> int:
    with files.opened(origin) as descriptor:
        return fiemap.count(descriptor)


def _defragment(origin: str) -> str | None:
    """What makes fewer extents of those of a file."""
    commands = {
        "xfs": f"{names.command('xfs_fsr', '-v', origin)}   (while the VM is shut off)",
        "btrfs": f"{names.command('btrfs', 'filesystem', 'defragment', '-t', '128M', origin)}   (unshares its blocks)",
    }
    return commands.get(files.fstype(origin))


# -- making it ---------------------------------------------------------------------------------------------------------


async def prepare(clone: Clone) -> None:
    """See Driver.  What is dirty of an origin would be written by FICLONE, while the guest waits."""
    for directory in _directories(clone):
        await calls.make(directory, _make, clone, directory)
    await calls.at_once(_write_back, ((origin,) for origin in clone.origins))


def _make(clone: Clone, directory: str) -> None:
    place.make(directory, _kept(clone).gid)
    with place.opened(directory) as descriptor:
        for origin in clone.origins:
            parent, name = os.path.split(clone.of(origin))
            if parent == directory:
                new = files.opened(name, descriptor, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                with files.opened(origin) as source, new as target:
                    reflinks.match_nocow(target, source)


async def _write_back(origin: str) -> None:
    await calls.on_path(origin, _sync, origin, done="written back")


def _sync(origin: str) -> None:
    with files.opened(origin) as source:
        os.fdatasync(source)


async def create(clone: Clone) -> None:
    """See Driver."""
    await calls.at_once(_create, ((_kept(clone), *pair) for pair in zip(clone.origins, clone.frozen, strict=True)))


async def _create(kept: ReflinkKept, origin: str, frozen: str) -> None:
    await calls.on_path(origin, _clone, kept, origin, frozen, done="cloned")


def _clone(kept: ReflinkKept, origin: str, frozen: str) -> None:
    with (
        place.opened(os.path.dirname(frozen)) as directory,
        files.opened(origin) as source,
        files.opened(os.path.basename(frozen), directory, os.O_WRONLY) as target,
    ):
        reflinks.clone(target, source)
        _seal(target)
        if kept.uid != os.geteuid():
            os.fchown(target, kept.uid, kept.gid)
        os.fchmod(target, 0o400)


# -- what has been made ------------------------------------------------------------------------------------------------


def _seal(target: int) -> None:
    """Note what the clone is as soon as it is whole: what has no such note, or is something else, is not the clone."""
    status = os.fstat(target)
    note = json.dumps([status.st_ino, status.st_size, status.st_mtime_ns])
    os.setxattr(target, place.MARK, note.encode())


def _sealed(frozen: str) -> Fingerprint | None:
    try:
        inode, size_bytes, mtime_ns = map(int, json.loads(os.getxattr(frozen, place.MARK, follow_symlinks=False)))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None
    except (TypeError, ValueError):
        return None
    return Fingerprint(frozen, inode, size_bytes, mtime_ns)


async def activate(clone: Clone) -> Clone:
    """See Driver.  What a crash of the host must not take away is written to the disk."""
    await calls.on_path(clone.origins[0], _activate, clone)
    return clone


def _activate(clone: Clone) -> None:
    if why := _why_lost(clone):
        raise StateError(why)
    directories = _directories(clone)
    for path in (*clone.frozen, *directories, *map(os.path.dirname, directories)):
        with files.opened(path) as descriptor:
            os.fsync(descriptor)


async def why_lost(clone: Clone) -> str | None:
    """See Driver."""
    return await calls.on_path(clone.origins[0], _why_lost, clone)


def _why_lost(clone: Clone) -> str | None:
    if why := _why_hidden(clone):
        raise UnreachableError(why)
    return next((why for frozen in clone.frozen if (why := _change(frozen))), None)


def _why_hidden(clone: Clone) -> str | None:
    """Why it is out of sight, if nothing of it is there; else None."""
    if any(map(os.path.lexists, _directories(clone))):
        return None
    return place.why_hidden(clone.frozen[0], _kept(clone).mounted_on)


def _change(frozen: str) -> str | None:
    """What has become of a clone, as a sentence; None if it is as it was made."""
    try:
        sealed = _sealed(frozen)
    except FileNotFoundError:
        return f"{frozen} has been removed or renamed"
    if sealed is None:
        return f"{frozen} was not finished, or is another file now"
    return fingerprint.change(sealed)


async def rooms(clone: Clone) -> Sequence[Room]:
    """See Driver.  Several if the images lie in directories with quotas of their own."""
    return await calls.on_path(clone.origins[0], _rooms, clone, kind=SpaceError)


def _rooms(clone: Clone) -> list[Room]:
    if why := _why_hidden(clone):
        raise SpaceError(why)
    rooms = [files.room(os.path.dirname(directory)) for directory in _directories(clone)]
    return list({(room.free_bytes, room.total_bytes): room for room in reversed(rooms)}.values())


async def changed(older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
    """See Driver."""
    for clone in (older, newer):
        if why := await calls.on_path(origin, _why_hidden, clone) or await why_lost(clone):
            raise StateError(why)
    return await calls.on_path(origin, _changed, older.of(origin), newer.of(origin), done="compared")


def _changed(older: str, newer: str) -> list[Extent]:
    fstype = files.fstype(newer)
    if fstype not in COMPARABLE:
        raise StateError(f"{newer} lies on {fstype}, which does not tell where each block is")
    with files.opened(older) as before, files.opened(newer) as after:
        if os.fstat(before).st_dev != os.fstat(after).st_dev or fiemap.is_realtime(before) != fiemap.is_realtime(after):
            raise StateError(f"{older} and {newer} lie on different devices")
        return differences.of_files(before, after)


# -- its end -----------------------------------------------------------------------------------------------------------


async def remove(clone: Clone) -> None:
    """See Driver."""
    if why := await calls.on_path(clone.origins[0], _why_hidden, clone, kind=LeftoverError):
        raise LeftoverError(why)
    problem = None
    for directory in _directories(clone):
        try:
            await calls.on_path(directory, _remove, clone, directory, done="removed", kind=LeftoverError)
        except LeftoverError as error:
            problem = problem or error
    if problem:
        raise problem


def _remove(clone: Clone, directory: str) -> None:
    in_each = map(os.path.split, clone.frozen)
    place.remove(directory, [name for parent, name in in_each if parent == directory])


def by_hand(clone: Clone) -> Sequence[str]:
    """See Driver."""
    return [names.command("rm", "-f", *clone.frozen), names.command("rmdir", *_directories(clone))]
