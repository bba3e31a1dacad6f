"""The source for a running VM, as the functions of the protocol Source: a backup job of libvirt's, in pull mode."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from ... import hypervisor
from ...core import domainxml, names
from ...core.image import OpenImage
from ...errors import LeftoverError, StateError, UnreachableError
from ...host import blocking
from ...hypervisor import directories, quiesce
from ...hypervisor.domain import BEGIN_S
from ...images import nbd
from ...records.kept import Kept
from ...records.record import Record
from ...records.store import Lease
from ..bitmaps import CHECKPOINTS_COST, discard, exported, keep
from ..source import ByHand, Subject, Watch
from . import increments, job, state
from .planning import plan
from .scratch import devices, files
from .watch import watched

__all__ = [
    "CHECKPOINTS_COST",
    "OUTLIVES_REBOOT",
    "by_hand",
    "check_unused",
    "create",
    "destroy",
    "discard",
    "keep",
    "open",
    "plan",
    "release",
    "watched",
    "why_lost",
    "why_not",
]

log = logging.getLogger(__name__)

OUTLIVES_REBOOT = False
FROZEN_S = 10.0  # for the start of the job while the guest is frozen; Windows itself thaws after that time
REMOVE_S = 20.0  # on a file server that does not answer


async def why_not(domain: hypervisor.Domain) -> StateError | None:
    """QEMU keeps the point in time: it has to run."""
    if await domain.is_active():
        return None
    start = names.command("virsh", "start", domain.name)
    return StateError(
        f"{domain.name} is shut off, and has no QEMU for a backup job", f"{start}   (or --source offline)"
    )


async def create(subject: Subject, lease: Lease) -> datetime:
    """Make the scratch files and start the job: the point in time."""
    domain, record = subject.domain, lease.record
    directory, qemu = state.of(record).directory, await domain.qemu(subject.connect)
    if qemu is None:
        subject.warn(f"{domain.why_no_qemu(subject.connect)}; whether it sees {directory} has not been looked at")
    await directories.create(directory, subject.user, qemu.pid if qemu else None)
    await files.make(record, subject.user)
    async with increments.known(domain, lease, subject.since):
        checkpoint_xml = await increments.definition(lease.record)
        async with quiesce.frozen(domain, lease) if subject.quiesce else contextlib.nullcontext():
            moment = datetime.now(UTC)
            deadline_s = FROZEN_S if subject.quiesce else BEGIN_S
            await job.begin(domain, lease.record, deadline_s, checkpoint_xml=checkpoint_xml)
        log.info("%s: the backup job runs: this is the snapshot's moment", domain.name)
        await increments.made(domain, lease.record)
    return moment


@asynccontextmanager
async def open(record: Record, _watch: Watch) -> AsyncIterator[Sequence[OpenImage]]:  # noqa: A001
    """The exports of QEMU's NBD server.  One that does not answer may do so later; one that is not there is lost."""
    disks, kept = [disk.name for disk in record.snapshot.disks], state.of(record)
    budget, read_s, socket = nbd.Budget(len(disks)), record.read_timeout_s, kept.socket
    changed = {each.disk: exported(each, domainxml.dirty_bitmap(each.disk)) for each in kept.increments}
    async with AsyncExitStack() as stack:
        try:
            images = [
                await stack.enter_async_context(nbd.opened(name, socket, name, read_s, budget, changed.get(name)))
                for name in disks
            ]
        except nbd.SlowError:
            raise
        except UnreachableError as error:
            raise StateError(error.message) from error
        log.info("connected to the exports at %s", socket)
        yield images


async def why_lost(record: Record) -> str | None:
    """See Source."""
    async with hypervisor.connected(record.connect) as connection:
        domain = await connection.domain_by_uuid(record.snapshot.vm_uuid)
        if domain is None:
            return f"{record.snapshot.vm_name} is gone"
        if await domain.has_job_at(state.of(record).socket):
            return None
        why = await domain.why_shut_off()
        return f"{domain.name} {why}" if why else "its backup job has ended"


async def release(kept: Kept) -> None:
    """End the job."""
    log.info("ending the backup job of %s", kept.vm_name)
    await job.end(kept)


async def check_unused(kept: Kept) -> None:
    """The job may run on, and a scratch device not be there yet: what forgets it too early leaves it to nobody."""
    for _, device in state.of(kept).policy.devices:
        if not await trio.Path(device).exists():
            raise LeftoverError(
                f"the scratch device {device} is not there", f"snapmount recover   (when {device} is there again)"
            )
    async with hypervisor.connected(kept.connect) as connection:
        domain = await connection.domain_by_uuid(kept.vm_uuid)
        if domain and await domain.has_job_at(state.of(kept).socket):
            raise LeftoverError(
                f"the backup job of snapshot {kept.id} runs on {domain.name}, though it has no runtime record",
                names.command("virsh", "-c", kept.connect, "domjobabort", domain.name) + " && snapmount recover",
            )


async def destroy(kept: Kept) -> None:
    """Remove the scratch files and the socket."""
    scratch = state.of(kept).scratch
    log.info("removing %s", scratch)
    await blocking.on_path(scratch, REMOVE_S, _remove, kept, done="removed", kind=LeftoverError)


def _remove(kept: Kept) -> None:
    _remove_socket(kept)
    files.remove(kept)


def _remove_socket(kept: Kept) -> None:
    """One in the scratch directory goes with that."""
    socket = Path(state.of(kept).socket)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if socket.name == f"{names.directory(kept.id)}.sock" and stat.S_ISSOCK(os.lstat(socket).st_mode):
            os.unlink(socket)


def by_hand(kept: Kept) -> ByHand:
    """See Source."""
    told = state.of(kept)
    abort = names.command("virsh", "-c", kept.connect, "domjobabort", kept.vm_name)
    return ByHand([abort], [*_wipes(kept)], [told.scratch, told.socket])


def _wipes(kept: Kept) -> Sequence[str]:
    found = []
    for _, device in state.of(kept).policy.devices:
        with contextlib.suppress(OSError):  # one that cannot be read is not known to be ours
            if devices.is_ours(device, kept.id):
                clear = ("dd", "if=/dev/zero", f"of={device}", f"bs={devices.CLEARED_BYTES}", "count=1")
                found.append(names.command(*clear))
    return found
