"""Taking a snapshot, and recovering those that are in its way: for `take`, `boot` and `attach`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...errors import InterruptedByUserError, SnapmountError
from ...host import interruptible
from ...lifecycle import deletion, recovery, server
from ...lifecycle import taking as capture
from ...lifecycle.planning import Request
from ...records.record import Record
from ...records.store import Store
from .. import output


def revive(records: Sequence[Record], store: Store, verbose: bool) -> None:
    """Recover those whose server has died; say on standard error what has become of each."""
    for record in records:
        if recovery.is_dead(record, store):
            output.tell(str(recovery.recover(record, store, verbose, output.tell)))


def taken(request: Request, store: Store, verbose: bool) -> Record:
    """Take a snapshot, and leave it to a background process."""
    started = server.start(partial(capture.taken, request, store), store, verbose, output.tell)
    record = store.load(started.id)
    if record is None:
        raise SnapmountError(f"snapshot {started.id} has been ended already, by somebody else")
    if started.is_unwanted:
        interruptible.finish(deletion.end, store, record, True)
        raise InterruptedByUserError("interrupted; nothing was left behind")
    return record
