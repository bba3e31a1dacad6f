"""`snapmount boot`: a scratch VM on a snapshot."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING

from ... import hypervisor
from ...boot import launch
from ...errors import MissingError, SnapmountError, StateError, UsageError
from ...host import interruptible, signals
from ...lifecycle import deletion
from ...records.record import Record
from ...records.store import Store
from .. import output, present, requests
from . import common, taking

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    if arguments.console and not shutil.which("virsh"):
        raise MissingError("virsh is missing, which --console needs", "sudo apt-get install libvirt-clients")
    request, store = requests.boot(arguments), common.store()
    taking.revive(store.meant(arguments.source), store, arguments.verbose)
    record = common.active(arguments.source, store)
    if record and not record.is_meant_by(arguments.source) and _is_vm(arguments):
        record = None  # it has the name of which the snapshot's id has the beginning only
    is_taken_now = record is None
    if record and any(value for name, value in vars(arguments).items() if name.startswith("scratch_")):
        raise UsageError(
            f"snapshot {record.id} is there already: its scratch space stays as it is", "no --scratch options"
        )
    if record and (arguments.disk or arguments.exclude_disk):
        raise UsageError(f"snapshot {record.id} is there already: its disks stay as they are", "no --disk options")
    if record and arguments.connect not in (None, record.connect):
        raise UsageError(f"snapshot {record.id} is at {record.connect}, not at {arguments.connect}", "no --connect")
    record = record or _take_to_boot(arguments, store)
    try:
        vm, came = interruptible.run(launch.run, request, record, store)
    except BaseException as error:
        if is_taken_now:
            _end_unless_used(store, record, error)
        raise
    there = (f"scratch VM {vm.name} runs on snapshot {record.id}", common.to_see(record))
    document = vm.document() | {"snapshot": record.id, "came_after_s": came and round(came.after_s, 1)}
    output.print_either(arguments.json, lambda: document, partial(present.booted, vm, record, came), *there)
    if arguments.console:
        output.progress.end()
        signals.let_end()
        os.execvp("virsh", ["virsh", "-c", record.connect, "console", "--", vm.name])
    return 0


def _is_vm(arguments: argparse.Namespace) -> bool:
    return interruptible.run(launch.is_vm, arguments.source, arguments.connect or hypervisor.default_uri())


def _take_to_boot(arguments: argparse.Namespace, store: Store) -> Record:
    """Take a snapshot that ends with its last scratch VM."""
    return taking.taken(requests.take_to_boot(arguments), store, arguments.verbose)


def _end_unless_used(store: Store, record: Record, failure: BaseException) -> None:
    """End the snapshot after something has failed, unless the scratch VM runs on.  Raises SnapmountError if that
    cannot be, when the failure has been told.
    """
    try:
        interruptible.finish(deletion.end, store, record, False)
    except StateError:
        pass
    except SnapmountError:
        if isinstance(failure, SnapmountError):
            output.complain(failure)
        raise
