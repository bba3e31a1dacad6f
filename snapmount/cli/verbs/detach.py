"""`snapmount detach`: such disks, unplugged."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...attach import hotplug
from ...host import interruptible
from .. import outcomes, output
from . import common

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store = common.store()
    record = store.find(arguments.snapshot, common.connection(arguments))
    detach = partial(hotplug.detach, record, store, arguments.helper, arguments.disk, arguments.wait_timeout)
    unplugged = interruptible.run(detach)
    if arguments.json:
        output.print_json({"snapshot": record.id, "detached": [each.document() for each in unplugged]})
    else:
        output.print_text(outcomes.detached_text(unplugged, record))
    return 0
