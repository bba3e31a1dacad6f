"""The host's mounts: what is mounted where, whether a directory can be a mountpoint, and how a mount is taken away."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..core import names
from ..errors import LeftoverError, MissingError, NotFoundError, StateError
from . import execution
from .fuseconf import permits_allow_other

DEADLINE_S = 10.0
FUSE_CONF = Path("/etc/fuse.conf")


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    path: str
    fstype: str
    source: str
    is_shared: bool = False  # what is mounted below it reaches other mount namespaces (mount_namespaces(7))
    number: str = field(default="", compare=False)  # the mount's own, in its mount namespace
    device: int = field(default=0, compare=False)  # of the block device; else the file system's own, of major number 0
    is_writable: bool = field(default=True, compare=False)  # the file system, whatever this mount of it


def parse(mountinfo: str) -> list[Mount]:
    """The mounts of a mountinfo text, in its order: later ones may lie over earlier ones."""
    mounts = []
    for line in filter(None, mountinfo.split("\n")):  # splitlines() would split at characters that paths may have
        fields = line.split(" ")
        separator = fields.index("-")
        is_shared = any(field.startswith("shared:") for field in fields[6:separator])
        path, fstype, source = unescaped(fields[4]), fields[separator + 1], unescaped(fields[separator + 2])
        major, minor = map(int, fields[2].split(":"))
        is_writable = "rw" in fields[separator + 3].split(",")
        mounts.append(Mount(path, fstype, source, is_shared, fields[0], os.makedev(major, minor), is_writable))
    return mounts


def holding(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that an absolute path without symbolic links lies on: the last of those that reach furthest."""
    above = [mount for mount in mounts if mount.path in (path, "/") or path.startswith(f"{mount.path}/")]
    deepest = max((len(mount.path) for mount in above), default=0)
    return next((mount for mount in reversed(above) if len(mount.path) == deepest), None)


def unescaped(field: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def current() -> list[Mount]:
    """The mounts that this process sees."""
    return parse(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def check_host(allow_other: bool) -> None:
    """Raise MissingError if this host cannot mount FUSE file systems, or if this user may not admit others."""
    device = "/dev/fuse"
    if not os.path.exists(device):
        raise MissingError(
            f"{device} is missing: the kernel has no FUSE, or this container may not use it", "modprobe fuse"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise MissingError(
            f"{device} may not be opened by you", f"sudo chmod 666 {device}   (what the udev rule of fuse3 does)"
        )
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        raise MissingError("fusermount3 is missing", "sudo apt-get install fuse3")
    if allow_other and os.geteuid() != 0 and not permits_allow_other(fuse_conf()):
        raise MissingError(
            f"--allow-other: {FUSE_CONF} does not permit ordinary users to admit others to their mounts",
            f"echo user_allow_other | sudo tee -a {FUSE_CONF}",
        )


def fuse_conf() -> str:
    """What fusermount3 is told by its administrator (mount.fuse3(8)); '' where that cannot be read."""
    try:
        return FUSE_CONF.read_text(errors="replace")
    except OSError:
        return ""


def check_mountpoint(path: str) -> None:
    """Raise NotFoundError or StateError where `path` cannot be a mountpoint: it must be an empty directory, nothing
    mounted on it.
    """
    real = os.path.realpath(path)
    for mount in current():
        if mount.path == real:
            ours = mount.fstype == "fuse.snapmount"
            what = "a snapshot" if ours else f"a file system ({mount.fstype})"
            remedy = names.command(*(("snapmount", "umount") if ours else ("umount",)), path)
            raise StateError(f"{what} is already mounted on {path}", remedy)
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        raise NotFoundError(f"the mountpoint {path} does not exist", names.command("mkdir", "-p", path)) from None
    except NotADirectoryError:
        raise StateError(f"the mountpoint {path} is not a directory") from None
    except OSError as error:
        raise StateError(f"the mountpoint {path} cannot be used: {error.strerror}") from None
    if entries:
        raise StateError(f"the mountpoint {path} is not empty", "an empty directory as the mountpoint")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise StateError(f"the mountpoint {path} is not writable by you, and fusermount3 insists on that")


def _of(source: str) -> list[Mount]:
    return [mount for mount in current() if mount.source == source]


def is_mounted(path: str, source: str) -> bool:
    """Whether a mount of that source, be it dead, lies at the path and nothing over it."""
    return next((mount.source for mount in reversed(current()) if mount.path == path), None) == source


async def cover(path: str, view: str) -> None:
    """Move what is mounted at `view` to the path, over the dead mount there.

    Whoever looks meanwhile sees the one or the other, never the directory below.  mount(2) follows the path up to the
    dead mount's root and does not ask it for anything; MS_MOVE would fail, since what is mounted below a shared mount
    cannot be moved.  Raises StateError.
    """
    for command in (["mount", "--bind", "--no-canonicalize", view, path], ["umount", "--lazy", view]):
        await execution.output(command, DEADLINE_S, f"{path} cannot be mounted", StateError)


def by_hand(path: str) -> str:
    """The command by which the user takes away what is mounted there."""
    return names.command(*(["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]), path)


async def unmount(source: str) -> None:
    """Take away every mount of that source, also a dead or a busy one; none is fine.

    Mounts are found by their source, not by a path: what lies there now may be something else, which is left alone.
    Raises LeftoverError.
    """
    for mount in reversed(_of(source)):
        if not is_mounted(mount.path, source):
            raise LeftoverError(
                f"something else is mounted over the snapshot at {mount.path}", names.command("umount", mount.path)
            )
        count = _of(source).count(mount)  # one of a dead server's may lie below
        command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        what, remedy = f"{mount.path} cannot be unmounted", names.command(*command, mount.path)
        problem = LeftoverError(what, remedy)
        try:
            await execution.output([*command, "--", mount.path], DEADLINE_S, what, LeftoverError, remedy)
        except LeftoverError as error:
            problem = error
        if _of(source).count(mount) >= count:
            raise problem
