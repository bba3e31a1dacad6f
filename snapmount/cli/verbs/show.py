"""`snapmount show`: one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.lifecycle import State
from ...errors import UsageError
from .. import output, present
from . import common

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store = common.store()
    record = store.find(arguments.snapshot, common.connection(arguments))
    if store.state(record) is State.DEAD:
        record = common.alive(record, store)
    if arguments.initiator_kind and not record.publication:
        raise UsageError(f"snapshot {record.id} is not published over iSCSI", "no --for")
    sessions = common.sessions([record], store)[record.id]
    shown = present.Shown(record, store, sessions, arguments.show_secret, arguments.initiator_kind)
    output.print_either(arguments.json, shown.document, shown.details)
    return output.complain_all(shown.faults())
