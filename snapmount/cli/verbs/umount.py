"""`snapmount umount`: ends the snapshot that is mounted there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...host import interruptible
from ...lifecycle import deletion
from .. import outcomes, output
from . import common, ending

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store = common.store()
    record = deletion.mounted_at(arguments.mountpoint, store)
    unmount = partial(deletion.unmount, store, record, force=arguments.force, lazy=arguments.lazy)
    ended = ending.ending(store, record, partial(interruptible.run, unmount))
    output.print_either(arguments.json, partial(outcomes.ended_document, ended), partial(outcomes.ended_text, ended))
    return 0
