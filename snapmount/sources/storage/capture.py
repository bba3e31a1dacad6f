"""Takes the clones: the snapshot's moment.

The VM is suspended, all clones are made at once, and it goes on: also if one of them fails, or has not been made by the
time that was promised.  A driver that does not come to an end then is waited for while the guest runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial

import trio

from ...core import domainxml, names, units
from ...errors import SnapmountError, StateError
from ...host import blocking
from ...hypervisor import openfiles, pause, quiesce
from ...images import fingerprint, lock
from ...records.store import Lease
from ..source import Subject
from . import clones
from .state import StorageState

AGAIN = "the same command again"
LOOK_S = 30.0
BLOCK_JOB = "it goes on while the VM is paused"


async def take(subject: Subject, lease: Lease, kept: StorageState) -> tuple[datetime, float]:
    """The moment, and how long the VM was paused for it.

    Raises StateError if the VM or its images have changed since the plan, or the pause has taken too long;
    SnapmountError if a clone cannot be made.
    """
    await _check_no_block_job(subject, kept)
    if kept.run_id < 0:
        async with _locked(kept):
            taken = await _take_at_once(kept)
    elif not kept.needs_pause:
        async with _frozen(subject, lease):
            taken = await _take_at_once(kept)
    else:
        taken = await _take_paused(subject, lease, kept)
    await _check_unchanged(subject, kept)
    return taken


async def _take_at_once(kept: StorageState) -> tuple[datetime, float]:
    """Nobody writes meanwhile, or what is made is of one moment by itself."""
    moment = datetime.now(UTC)
    await _make(kept)
    return moment, 0.0


async def _take_paused(subject: Subject, lease: Lease, kept: StorageState) -> tuple[datetime, float]:
    failures: list[SnapmountError] = []
    is_made = trio.Event()

    async def make() -> None:
        try:
            await _make(kept)
        except SnapmountError as error:
            failures.append(error)
        is_made.set()

    async with trio.open_nursery() as nursery:
        async with _frozen(subject, lease), pause.paused(subject.domain, lease) as paused:
            moment = datetime.now(UTC)
            nursery.start_soon(make)
            with trio.move_on_at(paused.began_s + (kept.max_pause_s if paused.is_ours else clones.CREATE_S)):
                await is_made.wait()
            is_in_time = is_made.is_set()  # what is made later is not of the moment
        nursery.cancel_scope.cancel()
    if not is_in_time:
        raise _too_slow(subject.domain.name, kept, paused.lasted_s)
    if failures:
        raise failures[0]
    return moment, paused.lasted_s


def _frozen(subject: Subject, lease: Lease) -> AbstractAsyncContextManager[None]:
    return quiesce.frozen(subject.domain, lease) if subject.quiesce else contextlib.nullcontext()


def _too_slow(vm: str, kept: StorageState, lasted_s: float) -> StateError:
    return StateError(
        f"{vm}: the clones were not made within the {units.moment(kept.max_pause_s)} that --max-pause allows; the VM "
        f"was paused for {units.moment(lasted_s)}, and goes on without a snapshot",
        f"--max-pause {max(2, round(3 * kept.max_pause_s))}   (or --source pull, which pauses nothing)",
    )


async def _make(kept: StorageState) -> None:
    """All clones at the same time."""
    await clones.at_once([partial(clones.create, clone) for clone in kept.clones])


# What is looked at before and after makes the pause no longer.


async def _check_no_block_job(subject: Subject, kept: StorageState) -> None:
    """Raise StateError if a job of QEMU writes to an image, which a pause does not keep it from."""
    if kept.run_id >= 0:
        await subject.domain.block_jobs.check_none((disk.name for disk in subject.selection.chosen), BLOCK_JOB)


async def _check_unchanged(subject: Subject, kept: StorageState) -> None:
    """Raise StateError if the VM has been started, shut off, or given other images since it was looked at, as it is
    also by a block job that has ended by now.
    """
    domain = subject.domain
    if await domain.run_id() != kept.run_id:
        raise StateError(f"{domain.name} was started or shut off while the snapshot was taken", AGAIN)
    now = {disk.name: disk for disk in domainxml.disks(await domain.xml())}
    changed = [disk.name for disk in subject.selection.chosen if now.get(disk.name) != disk]
    if changed:
        raise StateError(f"{domain.name}: {names.listed(changed)} was changed while the snapshot was taken", AGAIN)
    await _check_no_block_job(subject, kept)
    if kept.run_id >= 0:
        await _check_open(subject, kept)
    what = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
    if what:
        raise StateError(f"{domain.name}: {what}, while the snapshot was taken", AGAIN)


async def _check_open(subject: Subject, kept: StorageState) -> None:
    """Raise StateError if what is cloned is not what the VM's QEMU writes to, since another file has its name now."""
    domain = subject.domain
    qemu = await domain.qemu(subject.connect)
    if qemu is None:
        raise StateError(domain.why_no_qemu(subject.connect))
    try:
        replaced = await blocking.call(LOOK_S, openfiles.not_open, _files(kept), qemu.pid)
    except (OSError, trio.TooSlowError) as error:
        raise StateError(f"{domain.name}: what its QEMU has open cannot be told: {error}", "--source pull") from error
    if replaced:
        what = "is not what its QEMU has open: another file has come to its place"
        raise StateError(f"{domain.name}: {names.listed(replaced)} {what}", "--source pull")


@contextlib.asynccontextmanager
async def _locked(kept: StorageState) -> AsyncIterator[None]:
    """No VM can be started on the images, those that are files, in the block.  Raises StateError."""
    with contextlib.ExitStack() as stack:
        for path in _files(kept):
            with trio.CancelScope(shield=True):  # else a thread left behind would open what nobody closes
                descriptor = await blocking.on_path(path, LOOK_S, lock.held, path)
            stack.callback(os.close, descriptor)
            stack.callback(lock.release, descriptor)
        yield


def _files(kept: StorageState) -> Sequence[str]:
    return [origin for clone in kept.clones for origin in clone.origins if origin.startswith("/")]
