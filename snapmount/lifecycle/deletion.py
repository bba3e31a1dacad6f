"""Ends a snapshot from outside: asks its server to, and does it where the server is dead or does not end; and says what
has gone with it.
"""

from __future__ import annotations

import contextlib
import logging
import os

import trio

from ..attach import attachments, hotplug
from ..attach.attachments import Attachment
from ..boot import scratchvm, tending
from ..core import names
from ..core.lifecycle import State
from ..errors import NotFoundError, StateError, UnreachableError
from ..host import endings, mounts
from ..host.processes import KILLED_S
from ..publish import sessions
from ..records.record import Record
from ..records.store import Store
from . import readers
from .dismissal import SERVER_S, STANDBY_S
from .ends import Ended, Hidden, listed
from .teardown import tear_down

log = logging.getLogger(__name__)

POLL_S = 0.05


def mounted_at(mountpoint: str, store: Store) -> Record:
    """The snapshot that is mounted there.  Raises NotFoundError."""
    path = os.path.realpath(mountpoint)
    found = [record for record in store.load_all()[0] if record.mountpoint == path]
    if found:  # more than one where another was taken away from there and is still read
        return next((record for record in found if mounts.is_mounted(path, record.mount_source)), found[0])
    if any((mount.path, mount.fstype) == (path, "fuse.snapmount") for mount in mounts.current()):
        raise NotFoundError(f"the snapshot mounted at {path} has no runtime record any more", mounts.by_hand(path))
    raise NotFoundError(f"no snapshot is mounted at {mountpoint}", "snapmount list")


async def end(store: Store, record: Record, force: bool) -> Ended:
    """End the snapshot, with all that belongs to it; where initiators are logged in, scratch VMs run on it or VMs have
    its disks, with `force` only.

    Raises StateError if they are, or if somebody else undoes it and does not finish; LeftoverError where
    something could not be undone.
    """
    unplugged: list[Attachment] = []
    if force:
        with contextlib.suppress(UnreachableError):  # teardown meets it again, and says how to go on
            unplugged = await hotplug.end_all(record, store.path(record.id))  # here: it tells what is not let go of
    else:
        await _refuse_if_used(store, record)
    luns_now = len(record.publication.target.luns) if record.publication else 0
    vms = [vm.name for vm in scratchvm.load_all(store.path(record.id))]
    ended = Ended(record, tuple(vms), tuple(unplugged), luns_now)
    with trio.move_on_after(SERVER_S + KILLED_S):
        while now := store.load(record.id):
            await _stop_server(store, now)  # another one may have taken it over meanwhile
            with store.taken_over(record.id) as lease:
                if lease:
                    await tear_down(lease)
                    return ended
            await trio.sleep(POLL_S)
        await _wait_standby_gone(record)
        return ended
    raise StateError(
        f"snapshot {record.id} is in the hands of {store.holder(record.id)}, which does not end",
        names.command("snapmount", "show", record.id),
    )


async def unmount(store: Store, record: Record, *, force: bool, lazy: bool) -> Ended | Hidden:
    """end() it where no program uses its mount, or with `force`.

    With `lazy`, where programs do, only the mount is taken away: its server ends it when they have closed its files,
    as after `umount --lazy`.  Raises StateError if they do otherwise, and as end() does.
    """
    if not force:
        await _refuse_if_used(store, record)
        found = await readers.of(record) if store.state(record) is State.ACTIVE else []  # else they read errors anyway
        if found and not lazy:
            lazily = names.command("snapmount", "umount", "--lazy", record.mountpoint)
            raise StateError(f"{record.mountpoint} is busy: {listed(found)}", f"{lazily}   (or --force)")
        if found:
            if record.publication:
                raise StateError(
                    f"snapshot {record.id} is published over iSCSI too, and does not end with its readers: "
                    f"{listed(found)}",
                    names.command("snapmount", "umount", "--force", record.mountpoint),
                )
            await mounts.unmount(record.mount_source)
            return Hidden(record, tuple(found))
    return await end(store, record, force)


async def _refuse_if_used(store: Store, record: Record) -> None:
    directory = store.path(record.id)
    for error in (*scratchvm.unreadable(directory).values(), *attachments.unreadable(directory).values()):
        raise StateError(error.message, names.command("snapmount", "delete", "--force", record.id))
    vms = [vm for vm in scratchvm.load_all(directory) if await tending.exists(record, vm)]
    if vms:
        names_of = ", ".join(f"{vm.name} ({vm.state})" for vm in vms)
        raise StateError(
            f"snapshot {record.id} is in use by the scratch VM{'s' * (len(vms) > 1)} {names_of}",
            names.command("snapmount", "delete", "--force", record.id),
        )
    attached = await hotplug.used_by(record, directory)
    if attached:
        helpers = ", ".join(dict.fromkeys(each.vm_name for each in attached))
        raise StateError(
            f"snapshot {record.id} is in use: its disks are attached to {helpers}",
            names.command("snapmount", "detach", record.id),
        )
    who = (await sessions.of([record], store))[record.id]
    if who:
        initiators = [f"{each.initiator} from {each.address}" if each.address else each.initiator for each in who]
        raise StateError(
            f"snapshot {record.id} is in use: logged in over iSCSI {'is' if len(who) == 1 else 'are'} "
            f"{names.listed(initiators)}",
            names.command("snapmount", "delete", "--force", record.id),
        )


async def _stop_server(store: Store, record: Record) -> None:
    """Ask the server to end and wait for it; kill it where it does not.  A server that is gone is fine."""
    if store.is_served(record.id):
        log.info("asking process %d, the server of snapshot %s, to end", record.server.pid, record.id)
        await endings.end(record.server, f"the server of snapshot {record.id}", SERVER_S)


async def _wait_standby_gone(record: Record) -> None:
    """If it has undone the snapshot, its last steps come after the end of the record."""
    with trio.move_on_after(STANDBY_S):
        if record.standby:
            await endings.wait(record.standby)
