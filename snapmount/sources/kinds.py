"""Which kinds of sources there are, as far as records tell of them: who only lists snapshots needs no more."""

from __future__ import annotations

from ..core import shapes
from ..records import Record
from .pullstate import KIND as PULL
from .pullstate import PullState

STATES = {PULL: PullState}


def check(record: Record) -> None:
    """Raise KeyError, TypeError or ValueError where no source knows what the record keeps for it."""
    kind = record.source["kind"]
    if kind not in STATES:
        raise ValueError(f"it is of a source that this version of snapmount does not know: {kind!r}")
    shapes.check(STATES[kind].from_document(record.source))
