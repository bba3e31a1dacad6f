"""Directories for QEMU: the scratch directory of a snapshot, where it keeps what the guest overwrites, and the overlay
directory of a scratch VM.

One directory for each, owned by QEMU's user and closed to others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from ..core import limits, names, units
from ..core.user import User
from ..errors import SpaceError
from ..host import blocking, datadirectory, trees

CHECK_S = 10.0
PROBE_BLOCK_BYTES = 64 * units.KIB
PROBE_BLOCKS = 16

# scratch files and overlays, NBD's socket, the probe; a scratch VM's firmware variables, and what virtlogd(8) keeps
_OURS = re.compile(r"[A-Za-z0-9_]{1,64}\.qcow2|nbd\.sock|probe|nvram\.fd|console\.log(\.\d+)?")


@dataclass(frozen=True)
class Use:
    """What a directory is for, in messages."""

    name: str
    remedy: str  # where it cannot be used


SCRATCH = Use("scratch directory", "snapmount VM MOUNTPOINT --scratch-dir DIRECTORY   (one that QEMU's user can write)")
OVERLAY = Use("overlay directory", "snapmount boot VM --overlay-dir DIRECTORY   (one that QEMU's user can write)")


def free_bytes(parent: Path, use: Use = SCRATCH) -> int:
    """What an ordinary user may still write below the directory.  The default parent need not exist yet.  Raises
    SpaceError.
    """
    parent = nearest(parent)
    try:
        status = os.statvfs(parent)
    except FileNotFoundError:
        raise SpaceError(f"the {use.name} {parent} does not exist", names.command("mkdir", str(parent))) from None
    except OSError as error:
        raise SpaceError(f"the {use.name} {parent} cannot be used: {error.strerror}", use.remedy) from error
    if not parent.is_dir():
        raise SpaceError(f"the {use.name} {parent} is not a directory", use.remedy)
    return status.f_bavail * status.f_frsize


def nearest(parent: Path) -> Path:
    """The directory, or of the default parent, which need not exist yet, the nearest that does."""
    if parent != datadirectory.path():
        return parent
    return next(each for each in (parent, *parent.parents) if each.exists())


def used_bytes(directory: Path) -> int:
    """What is written to the files, not what is reserved for them; 0 where they are gone."""
    total = 0
    try:
        for entry in os.scandir(directory):
            total += written_bytes(entry.stat(follow_symlinks=False))
    except OSError:
        pass  # it ended while we looked
    return total


def written_bytes(status: os.stat_result) -> int:
    """What is written to a file: its holes are not, and neither is what fallocate(2) has put beyond its end."""
    return min(status.st_size, status.st_blocks * 512)


async def create(directory: Path, user: User, qemu_pid: int | None, use: Use = SCRATCH) -> None:
    """Make the directory for QEMU's user and prove that QEMU can write there.  Raises SpaceError."""
    parent = directory.parent
    try:
        with trio.CancelScope(shield=True):  # what is made later, by a thread left behind, nobody would remove
            await blocking.call(CHECK_S, _make, directory, user)
        problem = await _write_probe(directory, user)
        is_visible = problem or qemu_pid is None or await blocking.call(CHECK_S, visible_to, qemu_pid, directory)
    except OSError as error:
        raise SpaceError(f"the {use.name} {parent} is not writable: {error.strerror}", use.remedy) from error
    except trio.TooSlowError:
        raise SpaceError(f"the {use.name} {parent} did not answer within {CHECK_S:g} s", use.remedy) from None
    if problem:
        raise SpaceError(
            f"the {use.name} {parent} is not writable by QEMU, which runs as uid {user.uid}: {problem}",
            use.remedy,
        )
    if not is_visible:
        raise SpaceError(
            f"QEMU (process {qemu_pid}) does not see the {use.name} {parent}: its file system was mounted "
            "after the VM was started, and QEMU lives in a mount namespace of its own",
            use.remedy,
        )


def _make(directory: Path, user: User) -> None:
    if directory.parent == datadirectory.path():
        datadirectory.make()
    directory.mkdir(mode=0o700)
    if user.uid == os.geteuid():
        return
    # who may write the parent may put a link in its place meanwhile
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner != os.geteuid():
            raise PermissionError(errno.EPERM, f"what was made there belongs to uid {owner}", str(directory))
        os.fchown(descriptor, user.uid, user.gid)
    finally:
        os.close(descriptor)


def as_user(user: User) -> dict[str, Any]:
    """For blocking.run(): run it as this user, who alone may read what it makes."""
    other = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    return {"umask": 0o077} | ({} if user.uid == os.geteuid() else other)


async def _write_probe(directory: Path, user: User) -> str | None:
    """Make a file in the directory as that user, and let it have the least space that a snapshot is taken with, since
    there may be a quota; return what went wrong.
    """
    try:
        problem = await _probe(directory, user, "dd", "if=/dev/zero", "bs=4096", "count=1", "status=none", to="of=")
        if problem or await blocking.call(CHECK_S, free_bytes, directory) < 2 * limits.FLOOR_BYTES:
            return problem  # so little is free that it may be had by others only
        problem = await _probe(directory, user, "fallocate", "--length", str(limits.FLOOR_BYTES), to="")
    except trio.TooSlowError:
        return f"writing a file took more than {CHECK_S:g} s"
    is_of_space = problem in (os.strerror(errno.EDQUOT), os.strerror(errno.ENOSPC))  # else it cannot be told there
    return f"it cannot have {units.size(limits.FLOOR_BYTES)} there: {problem}" if is_of_space else None


async def write_problem(directory: Path, user: User) -> str | None:
    """Write more to a file in the directory, as that user, than QEMU writes at once, and see to it that it is on the
    disk; return what went wrong, None where nothing did, or where it cannot be told.
    """
    command = ["dd", "if=/dev/zero", f"bs={PROBE_BLOCK_BYTES}", f"count={PROBE_BLOCKS}", "conv=fsync"]
    try:
        problem = await _probe(directory, user, *command, "status=none", to="of=")
    except (trio.TooSlowError, OSError):
        return None  # a busy disk is no broken one, and a host may be short of processes
    return None if problem == os.strerror(errno.ENOENT) else problem  # somebody has removed the directory


async def _probe(directory: Path, user: User, *command: str, to: str) -> str | None:
    """Run a command that makes a file in the directory, which is removed; return what went wrong.

    Raises trio.TooSlowError.
    """
    probe = directory / "probe"
    as_qemu = as_user(user) | {"env": os.environ | {"LC_ALL": "C"}}
    try:
        done = await blocking.run(CHECK_S, [*command, f"{to}{probe}"], **as_qemu)
    except FileNotFoundError:
        return f"{command[0]} is missing"
    finally:
        with contextlib.suppress(OSError, trio.TooSlowError):  # where it cannot be removed, it goes with the directory
            await blocking.call(CHECK_S, probe.unlink)
    if done.returncode == 0:
        return None
    return done.stderr.decode(errors="replace").strip().rpartition(": ")[2] or "a file cannot be made"


def visible_to(pid: int, directory: Path) -> bool:
    """Whether a process, by its mount namespace, sees this very directory; True where that cannot be told."""
    try:
        seen = os.stat(f"/proc/{pid}/root{directory}")
    except FileNotFoundError:
        return not Path(f"/proc/{pid}/root").exists()
    except OSError:
        return True
    here = directory.stat()
    return (seen.st_dev, seen.st_ino) == (here.st_dev, here.st_ino)


def strange(directory: Path) -> list[str]:
    """What lies in such a directory and was made neither by us nor by QEMU on our behalf.  Raises OSError."""
    with os.scandir(directory) as entries:
        return sorted(each.name for each in entries if not _OURS.fullmatch(each.name) or each.is_dir())


def remove(directory: Path) -> None:
    """Remove the directory with all in it, and the default parent where it is empty then.  Raises OSError."""
    trees.remove(directory)
    if directory.parent == datadirectory.path():
        datadirectory.remove_if_empty()
