"""Undoes a snapshot from its record: the one way in which a snapshot ends, whether its server ends it or has died.

The order is that of use: no scratch VM, no other VM's disk and no LUN rests on a mount that goes, nobody reads when the
job ends (QEMU is spared clients that vanish in mid-request), nobody writes scratch files when they go, and the record
goes last, when nothing is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from . import attaching, blocking, byhand, journal, mounts, tending
from .core import names
from .errors import LeftoverError, SnapmountError, StateError
from .publish import iscsi
from .records import Record, State
from .scratch import directories, files
from .sources import pull
from .state import Claim

log = logging.getLogger(__name__)

FREE_S = 25.0
DEADLINE_S = 60.0  # with that
REMOVE_S = 20.0  # on a file server that does not answer
STANDBY_S = 2.0  # nothing keeps it from ending


async def tear_down(claim: Claim) -> None:
    """Destroy the scratch VMs, unplug disks, withdraw the LUNs, unmount, end the job, remove the scratch files, the
    socket and the record.  Each step is idempotent, and all together end within DEADLINE_S.

    Raises LeftoverError, and keeps the record, where a step fails; the steps that rest on it are not taken then.
    """
    record, job_has_ended = claim.record, False
    try:
        with _deadline(DEADLINE_S):
            await free(claim)
            log.info("unmounting %s", record.mountpoint)
            await mounts.unmount(record.mount_source)
            log.info("ending the backup job of %s", record.snapshot.vm_name)
            await pull.end(record)
            job_has_ended = True
            if record.standby:
                await record.standby.end(f"the standby of the server of snapshot {record.id}", STANDBY_S)
            log.info("removing %s", record.scratch)
            await _on_disk(_remove_files, record)
        claim.forget()
        await _on_disk(_forget, record)
    except SnapmountError as error:
        claim.note(State.LEFTOVER, error.message)
        again = names.command("snapmount", "delete", record.id)
        raise LeftoverError(
            f"{record.snapshot.vm_name}: snapshot {record.id} has not been undone: {error.message}; "
            f"to do it by hand: {await byhand.commands(claim, job_has_ended=job_has_ended)}",
            f"{error.remedy} && {again}" if error.remedy and error.remedy != again else again,
        ) from error


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise LeftoverError(f"this has not ended within {seconds:g} s") from None


async def free(claim: Claim) -> None:
    """Take the view from those who use it: destroy the scratch VMs, unplug the disks that other VMs have, and withdraw
    the LUNs, also from initiators that are logged in; within FREE_S.  Idempotent.

    Raises LeftoverError, StateError or UnreachableError.
    """
    claim.note(State.ENDING)  # before it looks for them: no scratch VM is made, no disk attached from then on
    with _deadline(FREE_S):
        await tending.end_all(claim.record, claim.directory)
        await attaching.end_all(claim.record, claim.directory)
        await withdraw(claim)


async def withdraw(claim: Claim) -> None:
    """Withdraw the LUNs.  Idempotent.  Raises LeftoverError or StateError."""
    publication = claim.record.publication
    if publication:
        log.info("withdrawing %s", publication.target.iqn)
        await iscsi.withdraw(publication.backend, claim.directory, publication.target)
        with contextlib.suppress(StateError):  # it is withdrawn, also where that cannot be written down
            claim.update(publication=None)


async def _on_disk(remove: Callable[[Record], None], record: Record) -> None:
    """What removes files, which may lie on a file server that does not answer.  Raises LeftoverError."""
    try:
        await blocking.call(REMOVE_S, remove, record)
    except trio.TooSlowError:
        raise LeftoverError(f"{record.scratch} has not been removed within {REMOVE_S:g} s") from None
    except OSError as error:
        raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error


def _remove_files(record: Record) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(record.socket)
    if record.is_hidden:
        directories.remove_view(Path(record.mountpoint))
    files.remove(record)


def _forget(record: Record) -> None:
    journal.forget(record.scratch)
