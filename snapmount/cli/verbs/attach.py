"""`snapmount attach`: disks of a snapshot, plugged into another VM."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...attach import hotplug
from ...core import names
from ...errors import NotFoundError
from ...host import interruptible
from .. import output, present
from . import common, taking

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    store = common.store()
    taking.revive(store.meant(arguments.snapshot), store, arguments.verbose)
    record = common.active(arguments.snapshot, store, common.connection(arguments))
    if record is None:
        take = names.command("snapmount", arguments.snapshot, "MOUNTPOINT")
        raise NotFoundError(f"there is no snapshot {arguments.snapshot!r} to attach", f"{take}   (to take one first)")
    request = hotplug.AttachRequest(arguments.helper, tuple(arguments.disk), arguments.bus)
    made = interruptible.run(hotplug.attach, request, record, store)
    helper = made[0].vm_name
    detach = names.command("snapmount", "detach", record.id, helper)
    there = (f"disks of snapshot {record.id} are attached to {helper}", detach)
    document = {"snapshot": record.id, "attachments": [each.document() for each in made]}
    output.print_either(arguments.json, lambda: document, partial(present.attached, made, record), *there)
    return 0
