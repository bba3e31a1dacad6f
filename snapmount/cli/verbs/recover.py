"""`snapmount recover`: dead snapshots re-attached, orphans removed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...errors import SnapmountError
from ...lifecycle import recovery
from .. import outcomes, output
from . import common

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store = common.store()
    done = recovery.recover_all(arguments.snapshots, store, arguments.verbose, output.tell)
    not_told: list[SnapmountError] = []
    with output.going_on(not_told):
        nothing = "" if done.errors else "nothing to recover\n"
        document = partial(outcomes.recovery_document, done, store)
        output.print_either(arguments.json, document, lambda: outcomes.recovery_text(done) or nothing)
    for line in outcomes.recovery_text(done).splitlines() if not_told else ():
        output.tell(line)
    return output.complain_all(done.errors) or (not_told[0].exit_code if not_told else 0)
