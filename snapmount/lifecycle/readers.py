"""Programs that use a snapshot's mount: which have a file of it open or mapped, or work in it.

Nothing here asks the mount itself, which may hang: /proc tells which mount an open file is of (proc_pid_fdinfo(5)), and
by which path a directory or a mapping was reached (proc_pid_cwd(5), proc_pid_map_files(5)).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from ..host import blocking, mounts
from ..records.record import Record
from .ends import Reader

LOOK_S = 5.0  # the mappings of a process that hangs in one may not be told


@dataclass(frozen=True)
class _View:
    """The mount, as a process sees it: in its mount namespace it has numbers and paths of its own."""

    ids: frozenset[str]
    paths: tuple[str, ...]
    luns: frozenset[str]  # names of the files that back LUNs: tgtd(8) has them open, and ends with the snapshot

    def holds(self, path: str) -> bool:
        return any(path == root or path.startswith(f"{root}/") for root in self.paths)


async def of(record: Record) -> list[Reader]:
    """Those of the snapshot's mount, but for those that serve it.  An ordinary user sees none of other users."""
    found: dict[int, Reader] = {}
    with contextlib.suppress(trio.TooSlowError):  # what has been found by then
        await blocking.call(LOOK_S, _look, record, found)
    return [reader for _, reader in sorted(found.items())]


def _look(record: Record, found: dict[int, Reader]) -> None:
    """Open files of all processes first, then mappings, which may not be told."""
    own = {os.getpid(), record.server.pid, *([record.standby.pid] if record.standby else [])}
    processes = [Path("/proc", name) for name in os.listdir("/proc") if name.isdecimal() and int(name) not in own]
    views = {each: view for each in processes if (view := _view(each, record)) is not None}
    for uses in (_has_open, _works_in, _has_mapped):
        for process, view in views.items():
            if int(process.name) not in found and _tells(uses, process, view):
                with contextlib.suppress(OSError):  # it has ended
                    command = (process / "comm").read_text(errors="replace").rstrip("\n")
                    found[int(process.name)] = Reader(int(process.name), command)


def _tells(uses: Callable[[Path, _View], bool], process: Path, view: _View) -> bool:
    try:
        return uses(process, view)
    except OSError:  # it has ended, or is another user's
        return False


def _view(process: Path, record: Record) -> _View | None:
    """None if the process does not see the mount."""
    try:
        mountinfo = os.fsdecode((process / "mountinfo").read_bytes())
    except OSError:
        return None
    if record.mount_source not in mountinfo:
        return None
    seen = [mount for mount in mounts.parse(mountinfo) if mount.source == record.mount_source]
    luns = frozenset(disk.lun_file for disk in record.snapshot.disks)
    return _View(frozenset(mount.number for mount in seen), tuple(mount.path for mount in seen), luns) if seen else None


def _has_open(process: Path, view: _View) -> bool:
    return any(_is_of(each, process, view) for each in (process / "fdinfo").iterdir())


def _is_of(fdinfo: Path, process: Path, view: _View) -> bool:
    try:
        if _mount_of(fdinfo) not in view.ids:
            return False
        return os.path.basename(os.readlink(process / "fd" / fdinfo.name)) not in view.luns
    except FileNotFoundError:  # it has been closed
        return False


def _mount_of(fdinfo: Path) -> str | None:
    fields = (line.partition(":") for line in fdinfo.read_text(errors="replace").splitlines())
    return next((value.strip() for name, _, value in fields if name == "mnt_id"), None)


def _works_in(process: Path, view: _View) -> bool:
    return any(view.holds(os.readlink(process / link)) for link in ("cwd", "root"))


def _has_mapped(process: Path, view: _View) -> bool:
    return any(view.holds(path) for path in _mapped(process))


def _mapped(process: Path) -> Iterator[str]:
    for mapping in (process / "map_files").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is no more
            yield os.readlink(mapping)
