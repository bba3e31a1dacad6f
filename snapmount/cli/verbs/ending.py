"""Ending a snapshot: for `delete` and `umount`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from ...core import names
from ...errors import InterruptedByUserError
from ...host import interruptible, signals
from ...lifecycle import deletion
from ...lifecycle.deletion import Ended
from ...records.record import Record
from ...records.store import Store

T = TypeVar("T")


def end(store: Store, record: Record, force: bool) -> Ended:
    return ending(store, record, partial(deletion.end, store, record, force))


def ending(store: Store, record: Record, end: Callable[[], Awaitable[T]]) -> T | Ended:
    """What end() returns, which ends the snapshot."""
    try:
        return interruptible.run(end)
    except InterruptedByUserError:
        if store.load(record.id) is not None:
            again = names.command("snapmount", "delete", record.id)
            raise InterruptedByUserError(f"interrupted before snapshot {record.id} had ended", again) from None
        signals.put_back()  # it has just ended; what comes next must not begin
        return deletion.Ended(record)
