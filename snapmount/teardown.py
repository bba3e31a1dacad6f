"""Undoes a snapshot from its record: the one way in which a snapshot ends, whether its server ends it or has died.

The order is that of use: no scratch VM, no other VM's disk and no LUN rests on a mount that goes, nobody reads when the
job ends (QEMU is spared clients that vanish in mid-request), nobody writes scratch files when they go, and the record
goes last, when nothing is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from . import attaching, mounts, scratch, tending
from .core import names
from .errors import LeftoverError, SnapmountError
from .publish import iscsi
from .sources import pull
from .state import Claim, Record, State

log = logging.getLogger(__name__)


async def tear_down(claim: Claim) -> None:
    """Destroy the scratch VMs, unplug disks, withdraw the LUNs, unmount, end the job, remove the scratch files, the
    socket and the record.  Each step is idempotent.

    Raises LeftoverError, and keeps the record, where a step fails; the steps that rest on it are not taken then.
    """
    record = claim.record
    try:
        await free(claim)
        log.info("unmounting %s", record.mountpoint)
        await mounts.unmount(record.mount_source)
        log.info("ending the backup job of %s", record.snapshot.vm_name)
        await pull.end(record)
        log.info("removing %s", record.scratch)
        _remove_files(record)
    except SnapmountError as error:
        claim.note(State.LEFTOVER, error.message)
        raise LeftoverError(
            f"{record.snapshot.vm_name}: snapshot {record.id} has not been undone: {error.message}",
            f"{error.remedy + ', then ' if error.remedy else ''}{names.command('snapmount', 'delete', record.id)}",
        ) from error
    claim.forget()


async def free(claim: Claim) -> None:
    """Take the view from those who use it: destroy the scratch VMs, unplug the disks that other VMs have, and withdraw
    the LUNs, also from initiators that are logged in.  Idempotent.

    Raises LeftoverError, StateError or UnreachableError.
    """
    claim.note(State.ENDING)  # before it looks for them: no scratch VM is made, no disk attached from then on
    await tending.end_all(claim.record, claim.directory)
    await attaching.end_all(claim.record, claim.directory)
    publication = claim.record.publication
    if publication:
        log.info("withdrawing %s", publication.target.iqn)
        await iscsi.withdraw(publication.backend, claim.directory, publication.target)
        with contextlib.suppress(OSError):  # it is withdrawn, also where that cannot be written down
            claim.update(publication=None)


def _remove_files(record: Record) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record.socket)
        if record.is_hidden:
            scratch.remove_view(Path(record.mountpoint))
        scratch.remove(Path(record.scratch))
    except OSError as error:
        raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error
