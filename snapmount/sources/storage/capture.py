"""Takes the clones: the snapshot's moment.

The VM is suspended, all clones are made at once, and it goes on: also if one of them fails, or has not been made by the
time that was promised.  A driver that does not come to an end then is waited for while the guest runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial

import trio

from ...core import domainxml, names, units
from ...errors import SnapmountError, StateError
from ...host import blocking
from ...hypervisor import openfiles, pause
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
    if kept.run_id < 0:
        async with _locked(kept):
            return await _take_at_once(subject, kept)
    if not kept.needs_pause:
        return await _take_at_once(subject, kept)
    return await _take_paused(subject, lease, kept)


async def _take_at_once(subject: Subject, kept: StorageState) -> tuple[datetime, float]:
    """Nobody writes meanwhile, or what is made is of one moment by itself."""
    moment = datetime.now(UTC)
    await _make(subject, kept)
    await _check_same_run(subject, kept)
    return moment, 0.0


async def _take_paused(subject: Subject, lease: Lease, kept: StorageState) -> tuple[datetime, float]:
    failures: list[SnapmountError] = []
    is_made = trio.Event()

    async def make() -> None:
        try:
            await _make(subject, kept)
        except SnapmountError as error:
            failures.append(error)
        is_made.set()

    async with trio.open_nursery() as nursery:
        async with pause.paused(subject.domain, lease) as paused:
            moment = datetime.now(UTC)
            nursery.start_soon(make)
            with trio.move_on_at(paused.began_s + (kept.max_pause_s if paused.is_ours else clones.CREATE_S)):
                await is_made.wait()
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not is_made.is_set():
        raise _too_slow(subject.domain.name, kept, paused.lasted_s)
    return moment, paused.lasted_s


def _too_slow(vm: str, kept: StorageState, lasted_s: float) -> StateError:
    return StateError(
        f"{vm}: the clones were not made within the {units.moment(kept.max_pause_s)} that --max-pause allows; the VM "
        f"was paused for {units.moment(lasted_s)}, and goes on without a snapshot",
        f"--max-pause {max(2, round(3 * kept.max_pause_s))}   (or --source pull, which pauses nothing)",
    )


async def _make(subject: Subject, kept: StorageState) -> None:
    """All clones at the same time, and a look at whether they are what was planned."""
    checks = partial(_check_unchanged, subject, kept)
    await clones.at_once([checks, *(partial(clones.create, clone) for clone in kept.clones)])
    changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
    if changed:
        raise StateError(f"{subject.domain.name}: {changed}, while the snapshot was taken", AGAIN)


async def _check_unchanged(subject: Subject, kept: StorageState) -> None:
    """Raise StateError if the VM has been started, shut off, or given other images since it was looked at, or a job of
    its QEMU writes to them, which a pause does not keep from it.
    """
    domain, chosen = subject.domain, subject.selection.chosen
    await _check_same_run(subject, kept)
    now = {disk.name: disk for disk in domainxml.disks(await domain.xml())}
    changed = [disk.name for disk in chosen if now.get(disk.name) != disk]
    if changed:
        raise StateError(f"{domain.name}: {', '.join(changed)} was changed while the snapshot was taken", AGAIN)
    if kept.run_id >= 0:
        await domain.block_jobs.check_none((disk.name for disk in chosen), BLOCK_JOB)
        await _check_open(subject, kept)


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


async def _check_same_run(subject: Subject, kept: StorageState) -> None:
    if await subject.domain.run_id() != kept.run_id:
        raise StateError(f"{subject.domain.name} was started or shut off while the snapshot was taken", AGAIN)


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
