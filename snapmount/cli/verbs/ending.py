"""Ending a snapshot: for `delete` and `umount`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ...core import names
from ...errors import InterruptedByUserError
from ...host import signals
from ...lifecycle import dismissal
from ...lifecycle.ends import Ended
from ...records.record import Record
from ...records.store import Store
from .. import missing

T = TypeVar("T")


def end(store: Store, record: Record, force: bool, *, discards_checkpoint: bool = False) -> Ended:
    ended = ending(store, record, partial(_end, store, record, force))
    if discards_checkpoint and record.snapshot.checkpoint:
        _discard_checkpoint(record)
    return ended


def _discard_checkpoint(record: Record) -> None:
    """Remove the one that was made with the snapshot.  Raises MissingError if what does that is not all there."""
    try:
        from ...host import interruptible
        from ...lifecycle import checkpoints
    except ModuleNotFoundError as error:
        raise missing.explained(error) from error
    interruptible.run(checkpoints.discard_of, record)


def _end(store: Store, record: Record, force: bool) -> Ended:
    """Leave it to its server, or else load what undoes it here.  Raises MissingError if that is not all there."""
    if ended := dismissal.ended(store, record, force):
        return ended
    try:
        from ...host import interruptible
        from ...lifecycle import deletion
    except ModuleNotFoundError as error:
        raise missing.explained(error) from error
    return interruptible.run(deletion.end, store, record, force)


def ending(store: Store, record: Record, end: Callable[[], T]) -> T | Ended:
    """What end() returns, which ends the snapshot."""
    try:
        return end()
    except InterruptedByUserError:
        if store.load(record.id) is not None:
            again = names.command("snapmount", "delete", record.id)
            raise InterruptedByUserError(f"interrupted before snapshot {record.id} had ended", again) from None
        signals.put_back()  # it has just ended; what comes next must not begin
        return Ended(record)
