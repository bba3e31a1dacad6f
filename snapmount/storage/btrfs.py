"""The driver for image files on btrfs: one read-only snapshot of the subvolume that they lie in, however fragmented.

The snapshot lies in a directory of ours in the subvolume's own top directory, place.py: that is on the same mount as
the images, also if the subvolume is all that is mounted.  It is itself no part of the snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import trio

from ..core import names
from ..core.document import to_document
from ..core.extents import Extent
from ..errors import LeftoverError, MissingError, SnapmountError, SpaceError, StateError, UnreachableError
from ..host import execution, mounts, programs, subvolumes
from . import calls, differences, files, place, shapes
from .driver import Clone, Offer, Room, Task
from .shapes import BtrfsKept

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

log = logging.getLogger(__name__)

NAME = "btrfs"
# Measured: 11 to 67 ms, of images of 3,000 to 65,000 extents, Linux 6.18, a busy host; more if much is to be written.
SNAPSHOT_S = 0.07
FREE_S = 20.0
SNAPSHOT = "subvolume"  # its name in our directory


def _kept(clone: Clone) -> BtrfsKept:
    return shapes.of(BtrfsKept, clone)


def _snapshot(clone: Clone) -> str:
    """The path of the snapshot."""
    relative = os.path.relpath(clone.origins[0], _kept(clone).subvolume)
    return clone.frozen[0].removesuffix(f"/{relative}")


def _directory(clone: Clone) -> str:
    """Ours, that it lies in."""
    return os.path.dirname(_snapshot(clone))


# -- what could be made ------------------------------------------------------------------------------------------------


async def why_not(origin: str) -> str | None:
    """See Driver."""
    return await calls.on_path(origin, _why_not, origin)


def _why_not(origin: str) -> str | None:
    if why := files.why_no_file(origin):
        return why
    try:
        top = subvolumes.top(origin)
    except OSError as error:
        not_btrfs = error.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
        return f"lies on {files.fstype(origin)}" if not_btrfs else f"cannot be looked at: {error.strerror}"
    if top is None:
        return "lies in a subvolume whose top directory is not on the same mount"
    if os.geteuid() != 0:
        return "only root can remove the snapshot of a subvolume"
    if not os.access(top, os.W_OK):
        return f"lies in the subvolume {top}, which cannot be written to"
    if swapped := _swap_file(top):
        return f"lies in the subvolume {top}, of which there can be no snapshot because of the swap file {swapped}"
    if not programs.has("btrfs"):
        missing = execution.cannot_run("btrfs", FileNotFoundError())
        return f"{missing.message}: {missing.remedy}"
    return None


def _uuid(directory: str) -> str:
    """Of the subvolume that a directory lies in.  Raises OSError."""
    with files.opened(directory) as descriptor:
        return subvolumes.read(descriptor).uuid


def _swap_file(top: str) -> str | None:
    """A file in that subvolume that the kernel swaps to (btrfs(5), "SWAPFILE SUPPORT"; proc_swaps(5))."""
    ours = _uuid(top)
    for line in Path("/proc/swaps").read_text(errors="surrogateescape").split("\n")[1:]:
        escaped, _, kind = line.partition(" ")
        if kind.split()[:1] == ["file"]:
            path = mounts.unescaped(escaped)
            with contextlib.suppress(OSError):  # that is none on btrfs
                if _uuid(os.path.dirname(path)) == ours:
                    return path
    return None


async def plan(task: Task) -> Sequence[Offer]:
    """See Driver.  An Offer for each subvolume."""
    by_top: dict[str, list[str]] = {}
    for origin in task.origins:
        by_top.setdefault(await calls.on_path(origin, _top, origin), []).append(origin)
    return [await calls.on_path(top, _offer, task, top, origins) for top, origins in by_top.items()]


def _top(origin: str) -> str:
    top = subvolumes.top(origin)
    if top is None:
        raise StateError(f"{origin} lies in a subvolume whose top directory is not on the same mount")
    return top


def _offer(task: Task, top: str, origins: Sequence[str]) -> Offer:
    snapshot = Path(place.path(top, task.snapshot_id, NAME)) / SNAPSHOT
    inodes = tuple(os.stat(origin).st_ino for origin in origins)
    kept = BtrfsKept(place.mountpoint(top), top, _uuid(top), inodes, task.reader.gid)
    frozen = tuple(str(snapshot / os.path.relpath(origin, top)) for origin in origins)
    return Offer(
        Clone(NAME, tuple(origins), frozen, to_document(kept)),
        pause_s=SNAPSHOT_S,
        guest_pays=f"all that is overwritten or removed in the subvolume {top} keeps its space",
        is_comparable=True,
    )


# -- making it ---------------------------------------------------------------------------------------------------------


async def prepare(clone: Clone) -> None:
    """See Driver.  A snapshot begins with a commit of the file system: what is dirty is written before."""
    subvolume, directory = _kept(clone).subvolume, _directory(clone)
    await calls.make(directory, place.make, directory, _kept(clone).gid)
    await calls.on_path(subvolume, _write_back, subvolume, done="written back")


def _write_back(subvolume: str) -> None:
    with files.opened(subvolume) as descriptor:
        subvolumes.commit(descriptor)


async def create(clone: Clone) -> None:
    """See Driver.  Without the program, whose start would make the pause longer."""
    await calls.on_path(_kept(clone).subvolume, _create, clone, done="cloned")


def _create(clone: Clone) -> None:
    kept = _kept(clone)
    with place.opened(_directory(clone)) as directory, files.opened(kept.subvolume) as subvolume:
        _check_subvolume(kept, subvolume)
        subvolumes.snapshot(subvolume, directory, SNAPSHOT)


def _check_subvolume(kept: BtrfsKept, descriptor: int) -> None:
    if not subvolumes.is_top(descriptor) or subvolumes.read(descriptor).uuid != kept.uuid:
        raise StateError(f"{kept.subvolume} is another subvolume now")


# -- what has been made ------------------------------------------------------------------------------------------------


async def activate(clone: Clone) -> Clone:
    """See Driver.  A snapshot is on the disk as soon as it is made."""
    if why := await why_lost(clone):
        raise StateError(why)
    return clone


async def why_lost(clone: Clone) -> str | None:
    """See Driver."""
    return await calls.on_path(_directory(clone), _why_lost, clone)


def _why_lost(clone: Clone) -> str | None:
    kept, path = _kept(clone), _snapshot(clone)
    if why := _why_hidden(clone):
        raise UnreachableError(why)
    try:
        with files.opened(path) as descriptor:
            is_top, found = subvolumes.is_top(descriptor), subvolumes.read(descriptor)
        inodes = tuple(os.stat(frozen).st_ino for frozen in clone.frozen)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} has been removed or renamed"
    if not is_top or found.parent_uuid != kept.uuid or inodes != kept.inodes:
        return f"{path} is another subvolume now, or another file is in it"
    if not found.is_read_only or found.changed_in > found.made_in:
        return f"{path} can be written to now, or has been"
    return None


def _why_hidden(clone: Clone) -> str | None:
    """Why it is out of sight, if our directory is not there; else None."""
    directory = _directory(clone)
    return None if os.path.lexists(directory) else place.why_hidden(directory, _kept(clone).mounted_on)


async def rooms(clone: Clone) -> Sequence[Room]:
    """See Driver."""
    return [await calls.on_path(_directory(clone), _room, clone, kind=SpaceError)]


def _room(clone: Clone) -> Room:
    if why := _why_hidden(clone):
        raise SpaceError(why)
    return files.room(_kept(clone).subvolume)


async def changed(older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
    """See Driver."""
    for clone in (older, newer):
        if why := await calls.on_path(_directory(clone), _why_hidden, clone) or await why_lost(clone):
            raise StateError(why)
    return await calls.on_path(origin, _changed, older.of(origin), newer.of(origin), done="compared")


def _changed(older: str, newer: str) -> list[Extent]:
    with files.opened(older) as before, files.opened(newer) as after:
        if subvolumes.file_system(before) != subvolumes.file_system(after):
            raise StateError(f"{older} and {newer} lie on different file systems")
        return differences.of_files(before, after)


# -- its end -----------------------------------------------------------------------------------------------------------


async def remove(clone: Clone) -> None:
    """See Driver."""
    directory = _directory(clone)
    if why := await calls.on_path(directory, _why_hidden, clone, kind=LeftoverError):
        raise LeftoverError(why)
    is_made = await calls.on_path(directory, os.path.lexists, _snapshot(clone), kind=LeftoverError)
    number = await _delete(clone) if is_made else None
    await calls.on_path(directory, place.remove, directory, [], done="removed", kind=LeftoverError)
    if number is not None:
        await _free(_kept(clone).subvolume, number)


async def _delete(clone: Clone) -> int:
    """By its number, which no other subvolume gets: whoever may write there cannot put another one in its place."""
    path = _snapshot(clone)
    what = f"{path} cannot be removed"
    async with _in_place(clone) as options:
        number = await calls.on_path(path, _number, clone, options["cwd"], done="removed", kind=LeftoverError)
        # of the file system that the subvolume's top directory tells, which is above ours
        command = ["subvolume", "delete", "--subvolid", str(number), ".."]
        try:
            await _btrfs(what, *command, **options)
        except MissingError as error:
            raise LeftoverError(f"{what}: {error.message}", error.remedy) from error
    return number


def _number(clone: Clone, directory: str) -> int:
    """That of the snapshot; raises PermissionError if what is there is not ours."""
    with files.opened(f"{directory}/{SNAPSHOT}") as descriptor:
        found = subvolumes.read(descriptor)
        if not subvolumes.is_top(descriptor) or found.parent_uuid != _kept(clone).uuid:
            raise place.not_ours(_snapshot(clone))
        return found.id


async def _btrfs(what: str, *command: str, **options: Any) -> None:
    await execution.output(["btrfs", *command], math.inf, what, LeftoverError, **options)


@contextlib.asynccontextmanager
async def _in_place(clone: Clone) -> AsyncIterator[dict[str, Any]]:
    """What runs a program in our directory, by the descriptor that was looked at, whatever is at its path by now."""
    directory = _directory(clone)
    with contextlib.ExitStack() as stack:
        descriptor = await calls.on_path(directory, stack.enter_context, place.opened(directory), kind=LeftoverError)
        yield {"cwd": f"/proc/{os.getpid()}/fd/{descriptor}"}


async def _free(subvolume: str, number: int) -> None:
    """See that the guest has its space soon.  The file system clears up behind a snapshot that has been deleted, and
    what it clears has another use only after another commit.  If that takes long it goes on by itself.
    """
    what = f"{subvolume} has not yet what the snapshot took"
    with trio.move_on_after(FREE_S):
        try:
            await _btrfs(what, "subvolume", "sync", subvolume, str(number))
            await calls.on_path(subvolume, _write_back, subvolume, done="written back")
        except SnapmountError as error:
            log.warning("%s", error.message)


def by_hand(clone: Clone) -> Sequence[str]:
    """See Driver."""
    snapshot = names.command("btrfs", "subvolume", "delete", _snapshot(clone))
    return [snapshot, names.command("rmdir", _directory(clone))]
