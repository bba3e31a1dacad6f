"""`snapmount list`: all snapshots."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .. import output, present
from . import common

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store, connect = common.store(), common.connection(arguments)
    records, broken = store.load_all()
    records = [record for record in records if connect in (None, record.connect)]
    sessions = common.sessions(records, store)
    snapshots = [present.Shown(record, store, sessions[record.id]) for record in records]
    if arguments.json:
        output.print_json([shown.document() for shown in snapshots])
    elif snapshots:
        output.print_text(present.listing(snapshots))
    elif sys.stdout.isatty():
        output.print_text("no snapshots\n")
    return output.complain_all([*broken, *(error for shown in snapshots for error in shown.faults())])
