"""Ends a snapshot from outside: asks its server to, and does it where the server is dead or does not end."""

from __future__ import annotations

import contextlib
import logging

import trio

from . import attaching, attachments, luns, scratchvm, tending
from .core import names
from .errors import StateError, UnreachableError
from .processes import KILLED_S
from .records import Record
from .state import Store
from .teardown import STANDBY_S, tear_down

log = logging.getLogger(__name__)

SERVER_S = 100.0  # its own deadlines add up to less
POLL_S = 0.05


async def end(store: Store, record: Record, force: bool) -> None:
    """End the snapshot, with all that belongs to it; where initiators are logged in, scratch VMs run on it or VMs have
    its disks, with `force` only.

    Raises StateError where they are, or where somebody else undoes it and does not finish; LeftoverError where
    something could not be undone.
    """
    if force:
        with contextlib.suppress(UnreachableError):  # teardown meets it again, and says how to go on
            await attaching.end_all(record, store.path(record.id))  # here: it tells what a guest does not let go of
    else:
        await _refuse_if_used(store, record)
    with trio.move_on_after(SERVER_S + KILLED_S):
        while now := store.load(record.id):
            await _stop_server(store, now)  # another one may have taken it over meanwhile
            with store.taken_over(record.id) as claim:
                if claim:
                    await tear_down(claim)
                    return
            await trio.sleep(POLL_S)
        await _wait_standby_gone(record)
        return
    raise StateError(
        f"snapshot {record.id} is in the hands of {store.holder(record.id)}, which does not end",
        names.command("snapmount", "show", record.id),
    )


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
    attached = await attaching.used_by(record, directory)
    if attached:
        helpers = ", ".join(dict.fromkeys(each.vm_name for each in attached))
        raise StateError(
            f"snapshot {record.id} is in use: its disks are attached to {helpers}",
            names.command("snapmount", "detach", record.id),
        )
    who = (await luns.sessions([record], store))[record.id]
    if who:
        names_of = ", ".join(
            f"{each.initiator} from {each.address}" if each.address else each.initiator for each in who
        )
        raise StateError(
            f"snapshot {record.id} is in use: logged in over iSCSI is {names_of}",
            names.command("snapmount", "delete", "--force", record.id),
        )


async def _stop_server(store: Store, record: Record) -> None:
    """Ask the server to end and wait for it; kill it where it does not.  A server that is gone is fine."""
    if store.is_served(record.id):
        log.info("asking process %d, the server of snapshot %s, to end", record.server.pid, record.id)
        await record.server.end(f"the server of snapshot {record.id}", SERVER_S)


async def _wait_standby_gone(record: Record) -> None:
    """Where it has undone the snapshot, its last steps come after the end of the record."""
    with trio.move_on_after(STANDBY_S):
        if record.standby:
            await record.standby.wait_gone()
