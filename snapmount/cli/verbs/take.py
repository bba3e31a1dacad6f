"""`snapmount take`: a snapshot, mounted or published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import SnapmountError
from ...lifecycle import foreground, recovery
from ...records.record import Record
from ...records.store import Store
from .. import output, present, requests
from . import common, taking

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    request, store = requests.take(arguments), common.store()
    if arguments.foreground:
        not_told: list[SnapmountError] = []

        def show(taken: Record) -> None:
            with output.going_on(not_told):
                _print_taken(taken, store, arguments)

        foreground.serve(request, store, foreground.Reporter(store, show, output.tell), output.tell)
        return not_told[0].exit_code if not_told else 0
    taking.revive(recovery.dead(store, arguments.vm), store, arguments.verbose)
    _print_taken(taking.taken(request, store, arguments.verbose), store, arguments)
    return 0


def _print_taken(record: Record, store: Store, arguments: argparse.Namespace) -> None:
    shown = present.Shown(
        record, store, with_secret=True, initiator_kind=arguments.initiator_kind, expire_s=arguments.expire
    )
    there = (f"snapshot {record.id} of {record.snapshot.vm_name} is there", common.to_see(record))
    output.print_either(arguments.json, shown.document, shown.taken, *there)
