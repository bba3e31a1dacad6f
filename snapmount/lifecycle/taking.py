"""Takes a snapshot: from the plan to the moment that its source keeps it and its images can be read."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from .. import hypervisor
from ..core.image import Image
from ..core.publishing import choose_portals, target_of
from ..host import datadirectory
from ..publish import iscsi
from ..records import journal
from ..records.exclusion import exclusive
from ..records.record import Publication
from ..records.store import Lease, Store
from ..sources import registry
from . import checkpoints, keeping, nvram, planning
from .guard import guarded
from .planning import LunRequest, Request
from .session import OpenSnapshot, Reporter
from .teardown import tear_down

log = logging.getLogger(__name__)


@asynccontextmanager
async def taken(request: Request, store: Store, reporter: Reporter) -> AsyncIterator[OpenSnapshot]:
    """A snapshot, for as long as the block lasts; at its end it is torn down.  Raises SnapmountError."""
    await planning.check_host(request)
    backend = await iscsi.choose(request.luns.backend) if request.luns else ""
    free = await iscsi.free_ports(backend, request.luns.portals) if request.luns else []
    shown: list[OpenSnapshot] = []
    async with AsyncExitStack() as stack:
        async with hypervisor.connected(request.connect) as connection:
            planned = await planning.make(request, store, connection, reporter.warn)
            async with exclusive(store):
                planning.check_alone(planned.subject.domain, request.connect, store)
                record = replace(planned.record, standby=reporter.standby)
                lease = store.lease(record, lasts=registry.of(record).OUTLIVES_REBOOT)
            stack.callback(lease.release)
            stack.push_async_callback(_undo, lease, shown)
            reporter.recorded(lease.record)
            lease.write_definition(planned.subject.xml)
            if request.checkpoint is not None or request.since:
                await checkpoints.sweep(planned.subject.domain.uuid, store, reporter.warn)
                await checkpoints.check_free(lease.record)
            await _make(planned, lease)
            if lease.record.snapshot.checkpoint:
                await keeping.begin(planned.subject.domain.uuid)
            if request.luns:
                lease.record.snapshot.check_readable(planning.NO_LUNS)
        guard = await stack.enter_async_context(guarded(lease))
        images = await stack.enter_async_context(registry.of(lease.record).open(lease.record, guard.watch))
        _note_sizes(lease, images)
        if request.luns:
            async with exclusive(store):
                _plan_publication(request.luns, backend, free, lease)
        if request.expire_s:
            expires_at = datetime.now(UTC) + timedelta(seconds=request.expire_s)
            lease.update(expires_s=time.monotonic() + request.expire_s, expires_at=expires_at)
        shown.append(OpenSnapshot(lease, guard, images, request.booting))
        yield shown[0]


async def _undo(lease: Lease, shown: Sequence[OpenSnapshot]) -> None:
    """Unless it was left when it was shown."""
    if any(not each.ends for each in shown):
        return
    with trio.CancelScope(shield=True):
        await tear_down(lease)


async def _make(planned: planning.Plan, lease: Lease) -> None:
    """Make the snapshot: its point in time."""
    record, subject = lease.record, planned.subject
    if planned.directory:
        await journal.write(record, lease.store, planned.directory, subject.user.uid)
    if record.is_hidden:
        datadirectory.make_view(Path(record.mountpoint))
    moment = await registry.of(record).create(subject, lease)
    lease.update(snapshot=replace(lease.record.snapshot, created=moment))
    await nvram.keep(subject.xml, lease)


def _note_sizes(lease: Lease, images: Sequence[Image]) -> None:
    """The record has the disks' true sizes from now on."""
    snapshot = lease.record.snapshot
    sized = tuple(disk.of_size(image.size_bytes) for disk, image in zip(snapshot.disks, images, strict=True))
    lease.update(snapshot=replace(snapshot, disks=sized))


def _plan_publication(luns: LunRequest, backend: str, free: list[int], lease: Lease) -> None:
    """Write down how the disks will be published, and who may log in.

    A port is another snapshot's from the moment that its record says so, and stays its own if its server dies.
    """
    published = [other.publication for other in lease.store.load_all()[0] if other.publication]
    reserved = [
        portal
        for other in published
        for portal in other.target.portals
        if (other.backend, backend) != ("lio", "lio")  # the kernel's targets share one
    ]
    target = target_of(lease.record.snapshot, choose_portals(luns.portals, free, reserved), luns.initiators)
    lease.write_credentials(iscsi.new_credentials(luns.secret, mutual=luns.mutual))
    lease.update(publication=Publication(backend, target))
