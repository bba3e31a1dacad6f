"""What several verbs do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core import names, uris
from ...core.iscsi import Session
from ...errors import MissingError, NotFoundError
from ...records.record import Record
from ...records.store import Store
from ...sources import kinds
from .. import missing, output

if TYPE_CHECKING:
    import argparse


def store() -> Store:
    return Store.of_user(kinds.check)


def connection(arguments: argparse.Namespace) -> str | None:
    """Where the VMs are whose snapshots are meant; None: anywhere.  Raises UsageError."""
    connect: str | None = arguments.connect
    if connect is not None:
        uris.check(connect)
    return connect


def active(word: str, store: Store, connect: str | None = None) -> Record | None:
    try:
        return store.find(word, connect)
    except NotFoundError:
        return None


def alive(record: Record, store: Store) -> Record:
    """As recovery.alive(); the snapshot as it is if what that needs is not there."""
    try:
        from ...lifecycle import recovery
    except ModuleNotFoundError as error:
        output.complain(missing.explained(error))
        return record
    except MissingError as error:
        output.complain(error)
        return record
    return recovery.alive(record, store, output.tell)


def to_see(record: Record) -> str:
    """For who has not been told of the snapshot."""
    show, delete = (names.command("snapmount", verb, record.id) for verb in ("show", "delete"))
    return f"{show}   (to end it: {delete})"


def sessions(records: Sequence[Record], store: Store) -> dict[str, list[Session] | None]:
    """Who is logged in to each; None if there is nothing to log in to, or nobody tells."""
    if not any(record.publication for record in records):
        return dict.fromkeys((record.id for record in records), None)
    from ...host import interruptible
    from ...publish import sessions as logged_in

    return interruptible.run(logged_in.of, records, store)
