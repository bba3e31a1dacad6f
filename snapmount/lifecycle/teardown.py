"""Undoes a snapshot from its record: the one way in which a snapshot ends, whether its server ends it or has died.

The order is that of use: no scratch VM, no other VM's disk and no LUN rests on a mount that goes, nobody reads when the
source ends what costs the guest (QEMU is spared clients that vanish in mid-request), nobody writes what the source has
made when it goes, and the record goes last, when nothing is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from ..attach import hotplug
from ..boot import tending
from ..core import names
from ..core.lifecycle import State
from ..errors import LeftoverError, SnapmountError, StateError, UnreachableError
from ..host import blocking, datadirectory, endings, mounts
from ..host.logs import Problems
from ..hypervisor import pause, quiesce
from ..records import journal
from ..records.record import Record
from ..records.store import Lease
from ..sources import registry
from . import byhand, checkpoints
from .dismissal import STANDBY_S
from .withdrawal import withdraw

log = logging.getLogger(__name__)
T = TypeVar("T")

FREE_S = 25.0
DEADLINE_S = 60.0  # with that
REMOVE_S = 20.0  # on a file server that does not answer
PATIENCE_S = 20.0
RETRY_S = 0.5


async def tear_down(lease: Lease) -> None:
    """Let the guest go on, destroy the scratch VMs, unplug disks, withdraw the LUNs, unmount, let the source end what
    costs the guest and remove what it has made, and remove the record.  Each step is idempotent, and all together end
    within DEADLINE_S.

    Raises LeftoverError, and keeps the record, if a step fails; the steps that rest on it are not taken then.
    """
    record, is_released = lease.record, False
    source = registry.of(record)
    try:
        with _deadline(DEADLINE_S):
            not_going_on = await _let_go_on(lease)
            until_s = trio.current_time() + _patience_s(record)
            await _persistently(partial(free, lease), until_s)
            log.info("unmounting %s", record.mountpoint)
            await mounts.unmount(record.mount_source)
            await _persistently(partial(source.release, record.kept), until_s)
            is_released = True
            if not_going_on:
                raise not_going_on
            await _end_standby(record)
            await checkpoints.settle(lease.record)
            await source.destroy(record.kept)
            await _in_time(_remove_view, record)
        lease.forget()
        await _in_time(journal.forget, names.directory(record.id))
    except SnapmountError as error:
        lease.note(State.LEFTOVER, error.message)
        again = names.command("snapmount", "delete", record.id)
        by_hand = await byhand.commands(lease, is_released=is_released)
        raise LeftoverError(
            f"{record.snapshot.vm_name}: snapshot {record.id} has not been undone: {error.message}; "
            f"{_who_tries_on(record)}to do it by hand: {by_hand}",
            f"{error.remedy} && {again}" if error.remedy and error.remedy != again else again,
        ) from error


def _who_tries_on(record: Record) -> str:
    if record.standby and record.standby.runs():
        return f"process {record.standby.pid} tries on; "
    return ""


async def _let_go_on(lease: Lease) -> UnreachableError | None:
    """First of all, since the guest waits; if that cannot be, the job must be ended all the same.  A guest that is
    paused cannot thaw anything.
    """
    record = lease.record
    try:
        await pause.resume(record)
        await quiesce.thaw(record)
    except UnreachableError as error:
        return error
    if record.frozen or record.paused_run is not None:
        with contextlib.suppress(StateError):  # it goes on, also where that cannot be written down
            lease.update(frozen=False, paused_run=None)
    return None


async def _end_standby(record: Record) -> None:
    """Nothing is left for it to do; it may be the one that does this."""
    if record.standby and record.standby.pid != os.getpid():
        await endings.end(record.standby, f"the standby of the server of snapshot {record.id}", STANDBY_S)


def _patience_s(record: Record) -> float:
    """How long to try where libvirt does not answer, which may be restarted just now.  If there is a standby, that
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


async def _in_time(function: Callable[[T], None], argument: T) -> None:
    """Raises LeftoverError."""
    await blocking.on_path(str(datadirectory.path()), REMOVE_S, function, argument, done="removed", kind=LeftoverError)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise LeftoverError(f"this has not ended within {seconds:g} s") from None


async def free(lease: Lease) -> None:
    """Take the view from those who use it: destroy the scratch VMs, unplug the disks that other VMs have, and withdraw
    the LUNs, also from initiators that are logged in; within FREE_S.  Idempotent.

    Raises LeftoverError, StateError or UnreachableError.
    """
    lease.note(State.ENDING)  # before it looks for them: no scratch VM is made, no disk attached from then on
    with _deadline(FREE_S):
        await tending.end_all(lease.record, lease.directory)
        await hotplug.end_all(lease.record, lease.directory)
        await withdraw(lease)


def _remove_view(record: Record) -> None:
    if record.is_hidden:
        datadirectory.remove_view(Path(record.mountpoint))
