"""Ends a snapshot by asking its server to, which is all that is needed while that is in order.

It needs neither libvirt nor trio: a host that has lost one of them, in an upgrade for instance, can still let go of its
snapshots.  deletion.py does the rest.
"""

from __future__ import annotations

import logging
import signal

from ..attach import attachments
from ..boot import scratchvm
from ..errors import InterruptedByUserError
from ..host import signals
from ..host.processes import KILLED_S, Process
from ..records.record import Record
from ..records.store import Store
from .ends import Ended

log = logging.getLogger(__name__)

SERVER_S = 100.0  # its own deadlines add up to less
STANDBY_S = 2.0  # nothing keeps it from ending


def ended(store: Store, record: Record, force: bool) -> Ended | None:
    """The snapshot, once its server has ended it; None if that does not do, and deletion.end() must see to it:
    where the server is gone or leaves something, and where others use the snapshot, or may.

    Raises InterruptedByUserError when a signal has come first.
    """
    directory = store.path(record.id)
    if any(attachments.RECORDS.sorted_out(directory)) or not (force or _is_unused(record, store)):
        return None
    vms = tuple(vm.name for vm in scratchvm.load_all(directory))
    luns = len(record.publication.target.luns) if record.publication else 0
    with signals.told() as interruption:
        if store.is_served(record.id):
            log.info("asking process %d, the server of snapshot %s, to end", record.server.pid, record.id)
            _end(record.server, f"the server of snapshot {record.id}", interruption)
        if store.load(record.id):
            return None
        if record.standby:  # its last steps come after the end of the record
            record.standby.ends_within(STANDBY_S, interruption)
    return Ended(record, vms, luns=luns)


def _is_unused(record: Record, store: Store) -> bool:
    """Whether nobody can have logged in, and no scratch VM be there."""
    directory = store.path(record.id)
    return not (record.publication or scratchvm.load_all(directory) or scratchvm.unreadable(directory))


def _end(server: Process, what: str, interruption: int) -> None:
    """As endings.end().  Raises InterruptedByUserError."""
    for number, wait_s in ((signal.SIGTERM, SERVER_S), (signal.SIGKILL, KILLED_S)):
        server.send(number)
        server.send(signal.SIGCONT)
        if server.ends_within(wait_s, interruption):
            return
        if signals.take_noted():
            raise InterruptedByUserError("interrupted")
        log.warning("process %d, %s, has not ended within %g s", server.pid, what, wait_s)
