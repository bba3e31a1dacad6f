"""Ends a snapshot from outside: asks its server to, and does it where the server is dead or does not end."""

from __future__ import annotations

import logging
import os
import signal

import trio

from . import luns
from .core import names
from .errors import StateError
from .state import Process, Record, Store
from .teardown import tear_down

log = logging.getLogger(__name__)

SERVER_S = 120.0  # its own deadlines add up to less
KILLED_S = 10.0
POLL_S = 0.05


async def end(store: Store, record: Record, force: bool) -> None:
    """End the snapshot, with all that belongs to it; where initiators are logged in, with `force` only.

    Raises StateError where they are, or where somebody else undoes it and does not finish; LeftoverError where
    something could not be undone.
    """
    if not force:
        await _refuse_if_used(store, record)
    await _stop_server(store, record)
    with trio.move_on_after(SERVER_S):
        while store.load(record.id):
            with store.taken_over(record.id) as claim:
                if claim:
                    await tear_down(claim)
                    return
            await trio.sleep(POLL_S)
        return
    raise StateError(
        f"snapshot {record.id} is being undone by another process", names.command("snapmount", "show", record.id)
    )


async def _refuse_if_used(store: Store, record: Record) -> None:
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
    try:
        process = os.pidfd_open(record.server.pid)
    except ProcessLookupError:
        return
    try:
        if not store.is_served(record.id) or Process.of_pid(record.server.pid) != record.server:
            return
        log.info("asking process %d, the server of snapshot %s, to end", record.server.pid, record.id)
        for number, wait_s in ((signal.SIGTERM, SERVER_S), (signal.SIGKILL, KILLED_S)):
            signal.pidfd_send_signal(process, number)
            with trio.move_on_after(wait_s):
                await trio.lowlevel.wait_readable(process)
                return
            log.warning(
                "process %d, the server of snapshot %s, has not ended within %g s", record.server.pid, record.id, wait_s
            )
    except (ProcessLookupError, FileNotFoundError):
        return
    finally:
        os.close(process)
