"""Takes over a snapshot whose server has died, while its source still keeps the point in time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from ..attach import attachments, hotplug
from ..boot import tending
from ..core import names
from ..core.lifecycle import State
from ..errors import NotFoundError, SpaceError, StateError, first_cause
from ..host import blocking, mounts
from ..host.processes import boot_id
from ..publish import iscsi
from ..records.record import Record
from ..records.store import Lease, Store
from ..sources import registry
from .guard import guarded
from .session import OpenSnapshot, Reporter, take_charge
from .teardown import tear_down

log = logging.getLogger(__name__)

CHECK_S = 10.0


@asynccontextmanager
async def adopted(snapshot_id: str, store: Store, reporter: Reporter) -> AsyncIterator[OpenSnapshot]:
    """The snapshot, to be shown again.  At the end of the block it is torn down, if it has been ready; else it is left
    as it was found, for another try, and watched over until then.

    If its point in time is lost it is torn down at once, and StateError raised, which says why, or SpaceError if it has
    to be given up for want of space.  Raises StateError or NotFoundError too if somebody else holds it or has ended it,
    UnreachableError if libvirt or QEMU does not answer, LeftoverError if it could not be undone.
    """
    with store.taken_over(snapshot_id) as lease:
        if lease is None:
            raise _not_ours(snapshot_id, store)
        reporter.recorded(lease.record)
        opened, is_over = None, False
        try:
            async with AsyncExitStack() as stack:
                opened = await _reopened(stack, lease)
                await _prepare(lease, reporter)
                log.info("taking the snapshot over from process %d", lease.record.server.pid)
                yield opened
        except BaseException as error:
            is_over = _note_loss(lease, first_cause(error))
            if opened and not opened.ends and not is_over:
                _leave_to_standby(lease, reporter)
            raise
        finally:
            if is_over or (opened and opened.ends):
                with trio.CancelScope(shield=True):
                    await tear_down(lease)


def _leave_to_standby(lease: Lease, reporter: Reporter) -> None:
    """Until another try somebody must see to it that the guest does not suffer: as after a restart of the host nobody
    does.
    """
    before = lease.record.standby
    if reporter.standby and not (before and before.runs()):
        try:
            take_charge(lease, reporter.standby)
        except StateError as error:
            log.error("%s", error.message)


def _note_loss(lease: Lease, error: BaseException) -> bool:
    """Whether the snapshot is over, and no other try can help; then why it is lost is noted: its checkpoint does not
    count, as who has read it was cut off.
    """
    match error:
        case _LostError():
            state, reason = State.LOST, error.reason
        case SpaceError():
            state, reason = State.GAVE_UP, error.message
        case _:
            return False
    if lease.record.state is State.ACTIVE:
        lease.note(state, reason)
    return True


class _LostError(StateError):
    """There is nothing to be taken over."""

    def __init__(self, record: Record, reason: str) -> None:
        self.reason = reason
        what = f"{record.snapshot.vm_name}: snapshot {record.id} could not be re-attached, and has been removed"
        super().__init__(f"{what}: {reason}")


async def _reopened(stack: AsyncExitStack, lease: Lease) -> OpenSnapshot:
    """The snapshot guarded, and its images, until the stack is closed.  Raises _LostError, and what guarded() and
    Source.open() do.
    """
    record = lease.record
    reason = await _why_lost(record)
    if reason:
        raise _LostError(record, reason)
    guard = await stack.enter_async_context(guarded(lease))
    try:
        images = await stack.enter_async_context(registry.of(record).open(record, guard.watch))
    except StateError as error:
        raise _LostError(record, error.message) from error
    for disk, image in zip(record.snapshot.disks, images, strict=True):
        if image.size_bytes != disk.size_bytes:
            raise _LostError(
                record, f"the export of {disk.name} has {image.size_bytes} bytes now, it had {disk.size_bytes}"
            )
    return OpenSnapshot(lease, guard, images, ends=False)


def _not_ours(snapshot_id: str, store: Store) -> StateError | NotFoundError:
    if store.load(snapshot_id) is None:
        return NotFoundError(f"snapshot {snapshot_id} has just been ended", "snapmount list")
    who = store.holder(snapshot_id)
    return StateError(
        f"snapshot {snapshot_id} is in the hands of {who}", names.command("snapmount", "show", snapshot_id)
    )


async def _why_lost(record: Record) -> str | None:
    """Why there is nothing to be taken over.  Raises UnreachableError."""
    if record.server.boot_id != boot_id() and not registry.of(record).OUTLIVES_REBOOT:
        return "the host has been restarted"
    if record.state is not State.ACTIVE:
        return record.why or f"its server has died while it was {record.state.value}"
    if record.is_for_boot:
        return "it was taken for scratch VMs, which do not outlive the death of its server"
    if record.has_expired:
        return "it has expired"
    return await registry.of(record).why_lost(record)


async def _prepare(lease: Lease, reporter: Reporter) -> None:
    """Free the dead view from its users, and see that the new one can be mounted.

    Whatever has the dead view's files open reads errors for ever: initiators log in anew, scratch VMs have to end.
    """
    record = lease.record
    if not mounts.is_mounted(record.mountpoint, record.mount_source):
        await blocking.on_path(record.mountpoint, CHECK_S, mounts.check_mountpoint, record.mountpoint)
    await tending.stop_all(record, lease.directory, reporter.warn)
    for attached in attachments.current(lease.directory):
        reporter.warn(f"{attached.disk} is detached from {attached.vm_name}: it has died with the snapshot's server")
    await hotplug.end_all(record, lease.directory)
    if record.publication:
        await iscsi.withdraw(record.publication.backend, lease.directory, record.publication.target)
