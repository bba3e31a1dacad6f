"""One snapshot's life: makes it, shows it, and ends it when it is told to or when its mount is gone."""

from __future__ import annotations

import logging
import math
import resource
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from . import hypervisor, nbd, planning, scratch, tending
from .core.image import Image
from .core.iscsi import target_of
from .core.snapshot import Disk, Snapshot, dump
from .core.tree import Constant, File, MapText, RawImage, Tree
from .errors import InterruptedByUserError, SnapmountError, first_cause
from .planning import LunRequest, Request
from .processes import Process
from .publish import fuse, iscsi
from .sources import pull
from .state import Claim, Publication, Record, State, Store
from .teardown import free, tear_down

log = logging.getLogger(__name__)

LUN_EXTENTS = 256  # tgtd looks for all holes of a disk each time that an initiator asks for one


class Reporter(Protocol):
    """Whom the session tells how it goes, until the view is ready."""

    def warn(self, text: str) -> None:
        """Something the user should know."""

    def claimed(self, record: Record) -> None:
        """The record exists."""

    def ready(self, record: Record) -> None:
        """The view is readable."""

    async def wait_abandoned(self) -> None:
        """Return when nobody waits for the view any more, though it is not ready; never once it has been."""


async def run(request: Request, store: Store, reporter: Reporter) -> None:
    """Take the snapshot, show it, and end it on SIGINT, SIGTERM or SIGHUP, or when it is unmounted.

    Raises SnapmountError where it cannot be made or undone, InterruptedByUserError for an end before
    the view was ready.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each disk has about a dozen connections
    ready = trio.Event()
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                nursery.start_soon(_then_cancel, scope, signals.__anext__)
                nursery.start_soon(_then_cancel, scope, reporter.wait_abandoned)
                await _live(request, store, reporter, ready)
                scope.cancel()
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    if not ready.is_set():
        raise InterruptedByUserError("interrupted; nothing was left behind")


async def _then_cancel(scope: trio.CancelScope, wait: Callable[[], Awaitable[object]]) -> None:
    await wait()
    scope.cancel()


async def _live(request: Request, store: Store, reporter: Reporter, ready: trio.Event) -> None:
    """The snapshot, from its plan to its end."""
    await planning.check_host(request)
    backend = await iscsi.choose(request.luns.backend) if request.luns else ""
    async with AsyncExitStack() as stack:
        async with hypervisor.connected(request.connect) as connection:
            planned = await planning.make(request, store, connection, reporter.warn)
            claim = store.claim(planned.record)
            stack.push_async_callback(_undo, claim)
            reporter.claimed(claim.record)
            await _make(request, planned, claim)
        images = await _connect(stack, request, claim)
        tree = _tree(claim.record.snapshot, images, planned, with_luns=request.luns is not None)
        view = await stack.enter_async_context(fuse.mounted(tree, claim.record.mountpoint, claim.record.mount_source))
        stack.push_async_callback(_free_first, claim)
        if request.luns:
            await _publish(request.luns, backend, claim)
        claim.update(state=State.ACTIVE, expires=_expiry(request))
        ready.set()
        reporter.ready(claim.record)
        with trio.move_on_after(request.expire_s or math.inf) as expiry:
            await _serve(view, images, claim, request.booting)
        if expiry.cancelled_caught:
            log.info("the snapshot has expired")


async def _undo(claim: Claim) -> None:
    with trio.CancelScope(shield=True):
        await tear_down(claim)


def _expiry(request: Request) -> datetime | None:
    return datetime.now(UTC) + timedelta(seconds=request.expire_s) if request.expire_s else None


async def _make(request: Request, planned: planning.Plan, claim: Claim) -> None:
    """Make the scratch directory and start the job: the point in time."""
    domain, record = planned.domain, planned.record
    await scratch.create(Path(record.scratch), planned.user, domain.qemu_pid(request.connect))
    if record.is_hidden:
        scratch.make_view(Path(record.mountpoint))
    left_out = [each.name for each in record.snapshot.left_out]
    claim.update(snapshot=replace(record.snapshot, created=datetime.now(UTC)))
    await pull.begin(domain, claim, left_out=left_out, quiesce=request.quiesce)
    log.info("%s: the backup job runs: this is the snapshot's moment", domain.name)


async def _connect(stack: AsyncExitStack, request: Request, claim: Claim) -> list[nbd.NbdImage]:
    """Connect to the exports; the record has the disks' true sizes then."""
    snapshot, socket = claim.record.snapshot, claim.record.socket
    images = [
        await stack.enter_async_context(nbd.opened(disk.name, socket, disk.name, request.read_timeout_s))
        for disk in snapshot.disks
    ]
    sized = tuple(
        replace(disk, size_bytes=image.size_bytes) for disk, image in zip(snapshot.disks, images, strict=True)
    )
    claim.update(snapshot=replace(snapshot, disks=sized))
    log.info("connected to the exports at %s", socket)
    return images


def _tree(snapshot: Snapshot, images: Sequence[Image], planned: planning.Plan, *, with_luns: bool) -> Tree:
    """Lay out what the mount will hold; what backs LUNs is not listed."""
    files = [File(disk.file, RawImage(image)) for disk, image in zip(snapshot.disks, images, strict=True)]
    files += [File(f"{image.name}.map", MapText(image)) for image in images]
    files.append(File("domain.xml", Constant(planned.xml.encode("utf-8", "surrogateescape"))))
    files.append(File("snapshot.json", Constant(dump(snapshot.document()))))
    if with_luns:
        shown = zip(snapshot.disks, images, strict=True)
        files += [File(_lun_file(disk), RawImage(image, LUN_EXTENTS), is_listed=False) for disk, image in shown]
    return Tree(files, snapshot.created_ns, planned.user.uid, planned.user.gid)


async def _publish(luns: LunRequest, backend: str, claim: Claim) -> None:
    """Publish the mounted files as LUNs."""
    target = target_of(claim.record.snapshot, luns.portals, luns.initiators)
    credentials = iscsi.new_credentials(luns.secret, mutual=luns.mutual)
    claim.write_credentials(credentials)
    claim.update(publication=Publication(backend, target))
    files = [f"{claim.record.mountpoint}/{_lun_file(disk)}" for disk in claim.record.snapshot.disks]
    await iscsi.publish(backend, claim.directory, target, files, credentials)
    log.info("published by %s as %s at %s", backend, target.iqn, ", ".join(map(str, target.portals)))


async def _free_first(claim: Claim) -> None:
    """Before the mount goes, scratch VMs, attached disks and LUNs do."""
    with trio.CancelScope(shield=True):
        try:
            await free(claim)
        except SnapmountError as error:
            log.warning("%s", error.message)  # tear_down() tries again, when nobody can read any more, and tells


def _lun_file(disk: Disk) -> str:
    return f".{disk.name}.lun"


async def _serve(view: fuse.View, images: Sequence[nbd.NbdImage], claim: Claim, booting: Process | None) -> None:
    """Return when the view has been unmounted, or has served the scratch VMs it was taken for; note in the record when
    its point in time is lost.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_source, view, images, claim)
        nursery.start_soon(_then_cancel, nursery.cancel_scope, partial(tending.watch, claim, booting))
        await view.wait_unmounted()
        nursery.cancel_scope.cancel()


async def _watch_source(view: fuse.View, images: Sequence[nbd.NbdImage], claim: Claim) -> None:
    def note(reason: str) -> None:
        log.error("the snapshot is lost: %s", reason)
        claim.note(State.LOST, reason)

    record = claim.record
    await nbd.wait_until_gone(record.socket, record.snapshot.disks[0].name)
    note(pull.LOST_CONNECTION)
    for image in images:
        image.close()
    await view.forget_cached()
    await pull.explain_loss(record, note)
