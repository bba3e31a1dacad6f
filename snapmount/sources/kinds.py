"""Which kinds of sources there are, as far as records tell of them: who only lists snapshots needs no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.description import Description
from ..core.document import from_document
from ..core.lifecycle import State
from ..records.kept import HasSource
from ..records.record import Record
from ..records.store import Store
from .offline import description as offline
from .offline.state import KIND as OFFLINE
from .offline.state import OfflineState
from .pull import description as pull
from .pull.state import KIND as PULL
from .pull.state import PullState
from .storage import description as storage
from .storage.state import KIND as STORAGE
from .storage.state import StorageState

Describe = Callable[[Record, Path, bool], Description]

STATES: Mapping[str, type[PullState] | type[OfflineState] | type[StorageState]] = {
    PULL: PullState,
    OFFLINE: OfflineState,
    STORAGE: StorageState,
}
DESCRIPTIONS: Mapping[str, Describe] = {PULL: pull.describe, OFFLINE: offline.describe, STORAGE: storage.describe}


def check(kept: HasSource) -> None:
    """Raise ValueError if no source knows what a record, or an entry of the journal, keeps."""
    kind = kept.source.get("kind")
    if not isinstance(kind, str) or kind not in STATES:
        raise ValueError(f"it is of a source that this version of snapmount does not know: {kind!r}")
    from_document(STATES[kind], kept.source, "source")


def describe(record: Record, store: Store) -> Description:
    """What the snapshot's source tells of it."""
    is_active = store.state(record) is State.ACTIVE
    return DESCRIPTIONS[record.source["kind"]](record, store.path(record.id), is_active)
