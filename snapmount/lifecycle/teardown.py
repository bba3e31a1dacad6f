"""Undoes a snapshot from its record: the one way in which a snapshot ends, whether its server ends it or has died.

The order is that of use: no scratch VM, no other VM's disk and no LUN rests on a mount that goes, nobody reads when the
job ends (QEMU is spared clients that vanish in mid-request), nobody writes scratch files when they go, and the record
goes last, when nothing is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import trio

from ..attach import hotplug
from ..boot import tending
from ..core import names
from ..core.lifecycle import State
from ..errors import LeftoverError, SnapmountError, StateError, UnreachableError
from ..host import blocking, datadirectory, mounts
from ..host.logs import Problems
from ..publish import iscsi
from ..records import journal
from ..records.record import Record
from ..records.store import Claim
from ..sources.pull import job, state
from ..sources.pull.scratch import files
from . import byhand

log = logging.getLogger(__name__)

FREE_S = 25.0
DEADLINE_S = 60.0  # with that
REMOVE_S = 20.0  # on a file server that does not answer
PATIENCE_S = 20.0
RETRY_S = 0.5
STANDBY_S = 2.0  # nothing keeps it from ending


async def tear_down(claim: Claim) -> None:
    """Thaw the guest, destroy the scratch VMs, unplug disks, withdraw the LUNs, unmount, end the job, remove the
    scratch files, the socket and the record.  Each step is idempotent, and all together end within DEADLINE_S.

    Raises LeftoverError, and keeps the record, where a step fails; the steps that rest on it are not taken then.
    """
    record, job_has_ended = claim.record, False
    try:
        with _deadline(DEADLINE_S):
            not_thawed = await _thaw(claim)
            until_s = trio.current_time() + _patience_s(record)
            await _persistently(partial(free, claim), until_s)
            log.info("unmounting %s", record.mountpoint)
            await mounts.unmount(record.mount_source)
            log.info("ending the backup job of %s", record.snapshot.vm_name)
            await _persistently(partial(job.end, record), until_s)
            job_has_ended = True
            if not_thawed:
                raise not_thawed
            await _end_standby(record)
            log.info("removing %s", state.of(record).scratch)
            await _remove(_remove_files, record)
        claim.forget()
        await _remove(_forget, record)
    except SnapmountError as error:
        claim.note(State.LEFTOVER, error.message)
        again = names.command("snapmount", "delete", record.id)
        by_hand = await byhand.commands(claim, job_has_ended=job_has_ended)
        raise LeftoverError(
            f"{record.snapshot.vm_name}: snapshot {record.id} has not been undone: {error.message}; "
            f"{_who_tries_on(record)}to do it by hand: {by_hand}",
            f"{error.remedy} && {again}" if error.remedy and error.remedy != again else again,
        ) from error


def _who_tries_on(record: Record) -> str:
    if record.standby and record.standby.runs():
        return f"process {record.standby.pid} tries on; "
    return ""


async def _thaw(claim: Claim) -> UnreachableError | None:
    """First of all, since the guest waits; where that cannot be, the job must be ended all the same."""
    try:
        await job.thaw(claim.record)
    except UnreachableError as error:
        return error
    if claim.record.frozen:
        with contextlib.suppress(StateError):  # it is thawed, also where that cannot be written down
            claim.update(frozen=False)
    return None


async def _end_standby(record: Record) -> None:
    """Nothing is left for it to do; it may be the one that does this."""
    if record.standby and record.standby.pid != os.getpid():
        await record.standby.end(f"the standby of the server of snapshot {record.id}", STANDBY_S)


def _patience_s(record: Record) -> float:
    """How long to try where libvirt does not answer, which may be restarted just now.  Where there is a standby, that
    goes on when we have given up, and who waits at `delete` wants to be told.
    """
    is_alone = record.server.pid == os.getpid() and not record.standby
    return PATIENCE_S if is_alone else 0.0


async def _persistently(step: Callable[[], Awaitable[None]], until_s: float) -> None:
    """Take the step, again and again until that time where libvirt cannot be reached."""
    problems = Problems(log, "this cannot be done yet: %s")
    while True:
        try:
            return await step()
        except UnreachableError as error:
            if trio.current_time() >= until_s:
                raise
            problems.met(error.message)
        await trio.sleep(RETRY_S)


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
        await hotplug.end_all(claim.record, claim.directory)
        await withdraw(claim)


async def withdraw(claim: Claim) -> None:
    """Withdraw the LUNs.  Idempotent.  Raises LeftoverError or StateError."""
    publication = claim.record.publication
    if publication:
        log.info("withdrawing %s", publication.target.iqn)
        await iscsi.withdraw(publication.backend, claim.directory, publication.target)
        with contextlib.suppress(StateError):  # it is withdrawn, also where that cannot be written down
            claim.update(publication=None)


async def _remove(function: Callable[[Record], None], record: Record) -> None:
    """Raises LeftoverError."""
    await blocking.on_path(state.of(record).scratch, REMOVE_S, function, record, done="removed", kind=LeftoverError)


def _remove_files(record: Record) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(state.of(record).socket)
    if record.is_hidden:
        datadirectory.remove_view(Path(record.mountpoint))
    files.remove(record)


def _forget(record: Record) -> None:
    journal.forget(state.of(record).scratch)
