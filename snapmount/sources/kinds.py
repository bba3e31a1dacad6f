"""Which kinds of sources there are, as far as records tell of them: who only lists snapshots needs no more."""

from __future__ import annotations

from ..records import shapes
from ..records.documents import HasSource
from .pull.state import KIND as PULL
from .pull.state import PullState

STATES = {PULL: PullState}


def check(kept: HasSource) -> None:
    """Raise KeyError, TypeError or ValueError if no source knows what a record, or an entry of the journal, keeps."""
    kind = kept.source["kind"]
    if kind not in STATES:
        raise ValueError(f"it is of a source that this version of snapmount does not know: {kind!r}")
    shapes.check(STATES[kind].from_document(kept.source))
