"""Which initiators are logged in to the targets of snapshots."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ..core.iscsi import Session
from ..errors import SnapmountError
from ..records.record import Record
from ..records.store import Store
from . import iscsi


async def of(records: Sequence[Record], store: Store) -> dict[str, list[Session] | None]:
    """Who is logged in to each snapshot's target, by the snapshot's id.

    None stands for no target, and for one that does not tell, as when the process that serves it is gone.
    """
    found: dict[str, list[Session] | None] = {}
    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(_ask, record, store, found)
    return found


async def _ask(record: Record, store: Store, found: dict[str, list[Session] | None]) -> None:
    found[record.id] = None
    if record.publication and store.is_served(record.id):
        try:
            found[record.id] = await iscsi.sessions(
                record.publication.backend, store.path(record.id), record.publication.target
            )
        except SnapmountError:
            pass  # it is being withdrawn, or its tgtd has died: `list` is no place for that
