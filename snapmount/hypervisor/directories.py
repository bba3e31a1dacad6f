"""Directories for QEMU: the scratch directory of a snapshot, where it keeps what the guest overwrites, and the overlay
directory of a scratch VM.

One directory for each, owned by QEMU's user and closed to others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Any

import trio

from ..core import limits, units
from ..core.user import User
from ..errors import SpaceError
from ..host import blocking, datadirectory, trees, usage
from ..host.usage import SCRATCH, Use

CHECK_S = 10.0
PROBE_BLOCK_BYTES = 64 * units.KIB
PROBE_BLOCKS = 16

# scratch files and overlays, NBD's socket, the probe, what is known to have changed (changes.py of the source storage);
# a scratch VM's firmware variables, and what virtlogd(8) keeps
_OURS = re.compile(r"[A-Za-z0-9_]{1,64}\.(qcow2|changes)|nbd\.sock|probe|nvram\.fd|console\.log(\.\d+)?")


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
        if problem or await blocking.call(CHECK_S, usage.free_bytes, directory) < 2 * limits.FLOOR_BYTES:
            return problem  # so little is free that it may be had by others only
        problem = await _probe(directory, user, "fallocate", "--length", str(limits.FLOOR_BYTES), to="")
    except trio.TooSlowError:
        return f"writing a file took more than {CHECK_S:g} s"
    is_of_space = problem in (os.strerror(errno.EDQUOT), os.strerror(errno.ENOSPC))  # else it cannot be told there
    return f"it cannot have {units.size(limits.FLOOR_BYTES)} there: {problem}" if is_of_space else None


async def write_problem(directory: Path, user: User) -> str | None:
    """Write more to a file in the directory, as that user, than QEMU writes at once, and see to it that it is on the
    disk; return what went wrong, None if nothing did, or where it cannot be told.
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
    """Whether a process, by its mount namespace, sees this very directory; True if that cannot be told."""
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
