"""Looks at the places where scratch files may go: what kind of file system each is on, how fast, how full."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from ....core.user import User
from ....errors import SpaceError
from ....host import blocking, datadirectory, execution, usage
from ....hypervisor import directories
from ..space import Space
from .place import Candidate, Place, choose, warning

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_S = 10.0


@dataclass(frozen=True)
class FileSystem:
    """What a directory is on."""

    fstype: str
    source: str  # as mount(8) shows it
    device: int  # st_dev


async def find(origins: Iterable[str], user: User, worst: int, allocated: int) -> Place:
    """The place for the scratch files of disks with these origins, of this worst case and allocated size in bytes.

    Besides the default, the directories of the VM's images are thought of, where they are on other file systems and we
    are root, who can make a directory for QEMU there.  Raises SpaceError.
    """
    default = datadirectory.path()
    file_system = await _file_system(default)
    candidates = [await _candidate(default, file_system, worst, allocated)]
    seen = {file_system.device}
    for parent in dict.fromkeys(Path(origin).parent for origin in origins if origin.startswith("/")):
        if os.geteuid() != 0 or not await _can_reach(parent, user):
            continue
        file_system = await _file_system(parent)
        if file_system.device not in seen:
            seen.add(file_system.device)
            candidates.append(await _candidate(parent, file_system, worst, allocated))
    for each in candidates:
        log.info("scratch place %s: %s, %d bytes free", each.path, each.why_not or each.fstype, each.space.free)
    return choose(candidates)


async def warning_of(directory: Path) -> str | None:
    """What to say of a place that the user has chosen, where something is to be said.  Raises SpaceError."""
    return warning(str(directory), (await _file_system(directory)).fstype)


async def _candidate(path: Path, file_system: FileSystem, worst: int, allocated: int) -> Candidate:
    free = await free_bytes(path)
    rotational = await _on_host(path, is_rotational, file_system)
    space = Space(free, worst, allocated)
    return Candidate(str(path), file_system.fstype, rotational, space, path == datadirectory.path())


async def free_bytes(path: Path) -> int:
    """What may be written on the path's file system.  Raises SpaceError if that does not answer."""
    return await _on_host(path, usage.free_bytes, path)


async def _on_host(path: Path, function: Callable[..., T], *args: object) -> T:
    """Raises SpaceError."""
    return await blocking.on_path(path, CHECK_S, function, *args, kind=SpaceError, remedy=usage.SCRATCH.remedy)


async def _can_reach(directory: Path, user: User) -> bool:
    """Whether QEMU's user can get to a directory that we make there, and we can make one."""
    try:
        done = await blocking.run(CHECK_S, ["test", "-x", str(directory)], **directories.as_user(user))
    except trio.TooSlowError:
        return False
    return done.returncode == 0 and await _on_host(directory, os.access, directory, os.W_OK)


async def _file_system(path: Path) -> FileSystem:
    """Raises SpaceError or MissingError."""
    existing = await _on_host(path, usage.nearest, path)
    command = ["findmnt", "--json", "--output", "FSTYPE,SOURCE", "--target", str(existing)]
    what, remedy = f"the file system of {path} cannot be told", usage.SCRATCH.remedy
    told = await execution.output(command, CHECK_S, what, SpaceError, remedy)
    try:
        (found,) = json.loads(told)["filesystems"][-1:]
    except ValueError as error:
        raise SpaceError(f"{what}: {error}", remedy) from None
    device = (await _on_host(path, os.stat, existing)).st_dev
    return FileSystem(found["fstype"], found["source"], device)


def is_rotational(file_system: FileSystem) -> bool | None:
    """Whether the disk below is one that rotates: /sys/dev/block/MAJ:MIN/queue/rotational, of a partition its disk's
    (https://docs.kernel.org/block/queue-sysfs.html); None if there is no one block device, or it does not tell.
    """
    number = file_system.device
    try:
        if not os.major(number):  # btrfs and others have numbers of their own
            number = os.stat(file_system.source.partition("[")[0]).st_rdev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        queue = next(each / "queue" for each in (device, device.parent) if (each / "queue").is_dir())
        return (queue / "rotational").read_text().strip() == "1"
    except (OSError, StopIteration):
        return None
