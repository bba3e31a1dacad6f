"""`snapmount delete`: ends snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InterruptedByUserError, SnapmountError
from .. import outcomes, output
from . import common, ending

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store, connect = common.store(), common.connection(arguments)
    failed, documents = 0, []
    not_told: list[SnapmountError] = []
    for word in arguments.snapshots:
        record = None
        try:
            record = store.find(word, connect)
            discards = arguments.discard_checkpoint
            ended = ending.end(store, record, arguments.force, discards_checkpoint=discards)
        except InterruptedByUserError:
            raise
        except SnapmountError as error:
            output.complain(error)
            failed = failed or error.exit_code
            documents += [outcomes.ended_document(record)] if record else []
            continue
        documents.append(outcomes.ended_document(ended))
        with output.going_on(not_told):
            output.print_text("" if arguments.json or not_told else outcomes.ended_text(ended))
    if arguments.json:
        output.print_json(documents)
    return failed or (not_told[0].exit_code if not_told else 0)
