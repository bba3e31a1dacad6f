"""Removes what a crash or a reboot has left of snapshots that have no runtime record any more.

Only what is provably ours is removed: the journal names it, its name, its owner and what it holds are as we make them,
and its source says that nothing uses it.  All else is named, with the command that removes it, and left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from .. import hypervisor
from ..boot import tending
from ..core import names
from ..errors import LeftoverError, SnapmountError
from ..host import blocking, datadirectory, mounts
from ..host.identity import Host
from ..host.processes import boot_id
from ..hypervisor import directories
from ..records import journal
from ..records.exclusion import exclusive
from ..records.journal import Entry
from ..records.store import Store
from ..sources import registry

log = logging.getLogger(__name__)

DISK_S = 30.0
ANSWER_S = 5.0


@dataclass(frozen=True)
class Orphan:
    """Something that no snapshot owns any more."""

    path: str
    why: str  # it is an orphan; or, where it was left, why
    is_removed: bool
    remedy: str | None = None  # the command that removes it, where it was left

    def document(self) -> dict[str, Any]:
        """Its JSON shape; see JSON in the man page."""
        return {"path": self.path, "removed": self.is_removed, "why": self.why, "remedy": self.remedy}


async def sweep(store: Store, tell: Callable[[str], None]) -> list[Orphan]:
    """Remove all orphans of this host; what has been done, and what not.  What is another host's is told of and left.
    Raises StateError if somebody else does not let us.
    """
    found: list[Orphan] = []
    async with exclusive(store):
        found += _sweep_unwritten(store)
        found += _sweep_unfinished(store)
        entries, broken = journal.load_all(store.check)
        for entry in entries:
            if entry.host != Host.this():
                tell(_of_another_host(entry))
            elif not _has_record(entry):
                found.append(await _sweep(entry))
        found += _unknown()
    return found + [Orphan(str(path), error.message, False, _by_hand(path)) for path, error in broken.items()]


def _by_hand(broken: Path) -> str:
    """What to do with a file of the journal that tells nothing."""
    return f"{names.command('rm', str(broken))}   (after a look for the directory {broken.stem}, which it is for)"


def _sweep_unwritten(store: Store) -> Iterator[Orphan]:
    """Directories whose maker has died before the record was there: it has made nothing else then."""
    for snapshot_id in store.ids():
        path = store.path(snapshot_id)
        if not (path / "record.json").exists() and not store.is_served(snapshot_id):
            shutil.rmtree(path, ignore_errors=True)
            yield Orphan(str(path), "who was to write a record there has died", not path.exists())


def _sweep_unfinished(store: Store) -> Iterator[Orphan]:
    """Files of the journal whose writer has died before they told anything."""
    known = store.ids()
    for file, snapshot_id in journal.unfinished():
        if snapshot_id not in known:
            with contextlib.suppress(OSError):
                file.unlink()
                datadirectory.remove_if_empty()
            yield Orphan(str(file), "who was to write it has died", not os.path.lexists(file))


def _of_another_host(entry: Entry) -> str:
    whose = f"snapshot {entry.snapshot} of {entry.vm_name} on the host {entry.host.name}"
    by_hand = names.command("rm", "-r", entry.directory, str(journal.path(entry.directory)))
    return f"{entry.directory} is left to {whose}; where there is no such host any more: {by_hand}"


def _has_record(entry: Entry) -> bool:
    """Whether the snapshot has a runtime record, be it one that cannot be read: then that is the way to end it."""
    return Store(Path(entry.runtime)).path(entry.snapshot).joinpath("record.json").exists()


async def _sweep(entry: Entry) -> Orphan:
    since = "the host was restarted" if entry.boot_id != boot_id() else "its runtime record has gone"
    whose = f"of snapshot {entry.snapshot} of {entry.vm_name}, before {since}"
    try:
        is_there = await blocking.on_path(entry.directory, DISK_S, _is_there, entry, kind=LeftoverError)
        await _check_not_served(entry)
        await _check_unused(entry)
        await mounts.unmount(entry.mount_source)
        await blocking.on_path(entry.directory, DISK_S, _check_ours, entry, kind=LeftoverError)
        log.info("removing %s", entry.directory)
        if entry.scratch_vm:
            await tending.remove_tpm(entry.connect, entry.scratch_vm)
        else:
            await registry.of(entry).destroy(entry.kept)
        await blocking.on_path(entry.directory, DISK_S, _clear, entry, done="removed", kind=LeftoverError)
    except SnapmountError as error:
        return Orphan(entry.directory, error.message, False, error.remedy)
    if not is_there:
        return Orphan(str(journal.path(entry.directory)), f"{whose}; {entry.directory} had gone already", True)
    return Orphan(entry.directory, whose, True)


def _is_there(entry: Entry) -> bool:
    """Whether the directory is there.  Raises LeftoverError if it cannot be there yet: what forgets it too early
    leaves it to nobody.
    """
    for_ever = f"where it never comes back: {names.command('rm', str(journal.path(entry.directory)))}"
    if os.path.lexists(entry.directory):
        return True
    if journal.mount_of(entry.directory) != entry.mount:
        remedy = f"{names.command('mount', entry.mount)} && snapmount recover   ({for_ever})"
        raise LeftoverError(f"{entry.directory} is out of sight: {entry.mount} is not mounted", remedy)
    return False


def _clear(entry: Entry) -> None:
    """Remove what is left there, and forget it.  Raises LeftoverError."""
    try:
        directories.remove(Path(entry.directory))
        datadirectory.remove_view(datadirectory.view(entry.snapshot))
    except OSError as error:
        raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error
    journal.forget(entry.directory)


async def _check_not_served(entry: Entry) -> None:
    """Raise LeftoverError if a process serves the snapshot, as it does on if somebody has removed its runtime
    record (a user's runtime directory goes with the last session: pam_systemd(8)).
    """
    for mount in mounts.current():
        if not mounts.is_mounted(mount.path, entry.mount_source):
            continue
        try:
            await blocking.call(ANSWER_S, os.statvfs, mount.path)
            how = "is served"
        except trio.TooSlowError:
            how = "may be served"
        except OSError:  # ENOTCONN: its server is dead
            continue
        raise LeftoverError(
            f"snapshot {entry.snapshot} of {entry.vm_name} {how} at {mount.path}, though its runtime record has gone",
            f"{mounts.by_hand(mount.path)}   (which ends it)",
        )


async def _check_unused(entry: Entry) -> None:
    """Raise LeftoverError if QEMU uses the directory, UnreachableError if libvirt does not tell."""
    await registry.of(entry).check_unused(entry.kept)
    async with hypervisor.connected(entry.connect) as connection:
        scratch_vm = entry.scratch_vm and await connection.scratch_vm(entry.scratch_vm, entry.snapshot)
        if scratch_vm and await scratch_vm.is_active():
            raise LeftoverError(
                f"the scratch VM {scratch_vm.name} runs, though its snapshot {entry.snapshot} has no runtime record",
                names.command("virsh", "-c", entry.connect, "destroy", scratch_vm.name) + " && snapmount recover",
            )
        if scratch_vm:
            await scratch_vm.remove()


def _check_ours(entry: Entry) -> None:
    """Raise LeftoverError for a directory that is not as we make them; none is fine."""
    remedy = names.command("rm", "-r", entry.directory)
    try:
        status = os.lstat(entry.directory)
        if not stat.S_ISDIR(status.st_mode):
            raise LeftoverError(f"{entry.directory} is not a directory", remedy)
        if status.st_uid not in (entry.owner_uid, os.geteuid()):
            raise LeftoverError(f"{entry.directory} belongs to uid {status.st_uid}, not to {entry.owner_uid}", remedy)
        strange = directories.strange(Path(entry.directory))
    except FileNotFoundError:
        return
    except OSError as error:
        raise LeftoverError(f"{entry.directory} cannot be read: {error.strerror}", remedy) from error
    if strange:
        raise LeftoverError(f"{entry.directory} holds what is not snapmount's: {', '.join(strange)}", remedy)


def _unknown() -> Iterator[Orphan]:
    """What looks like ours, but no journal names it.

    Others take and end snapshots meanwhile: what is there has been named before it was made, and is named until it has
    gone.
    """
    there = sorted(datadirectory.path().glob("snapmount-*"))
    known = {Path(entry.directory).name for entry in journal.load_all()[0]}
    for path in there:
        is_named = path.name in known or path.is_symlink() or not path.exists()
        if journal.NAME.fullmatch(path.name) and not is_named:
            remedy = names.command("rm", "-r", str(path))
            yield Orphan(str(path), "nothing tells whose it is; another version of snapmount made it?", False, remedy)
