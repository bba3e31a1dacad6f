"""One snapshot's life, once its source keeps it: shows it, and ends it when it is told to or when its mount is gone.

How it came to be is another's: taking.py makes a snapshot, adoption.py takes one over whose server has died.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio

from .. import hypervisor
from ..boot import tending
from ..core import names
from ..core.document import dump, to_document
from ..core.image import Image, OpenImage
from ..core.lifecycle import State
from ..core.snapshot import Disk
from ..errors import InterruptedByUserError, SnapmountError, StateError, first_cause
from ..host import mounts, shutdown, titles
from ..host.interruptible import received
from ..host.processes import Process
from ..publish import iscsi
from ..publish.dirty import service as dirty
from ..publish.dirty.text import DirtyText
from ..publish.fuse import filesystem
from ..publish.qcow2 import Qcow2Image, Qcow2Increment
from ..publish.tree import Constant, File, MapText, RawImage, Tree
from ..records.record import Record
from ..records.store import Lease
from ..sources import registry
from . import nvram
from .guard import Guard
from .teardown import free

log = logging.getLogger(__name__)

COMM = "snapmount"
INTERRUPTED = "interrupted; nothing was left behind"
LUN_EXTENTS = 256  # tgtd looks for all holes of a disk each time that an initiator asks for one


class Reporter(Protocol):
    """Whom the session tells how it goes, until the view is ready."""

    standby: Process | None  # who watches over the snapshot when this process was killed

    def warn(self, text: str) -> None:
        """Something the user should know."""

    def recorded(self, record: Record) -> None:
        """The record exists."""

    def ready(self, record: Record) -> None:
        """The view is readable."""

    def ending(self) -> None:
        """It is being undone, after it has been readable."""

    async def wait_abandoned(self) -> None:
        """Return when nobody waits for the view any more, though it is not ready; never once it has been."""


@dataclass
class OpenSnapshot:
    """A snapshot that is there, and whose record this process holds."""

    lease: Lease
    guard: Guard
    images: Sequence[OpenImage]  # of its disks, in their order
    booting: Process | None = None  # see Request
    ends: bool = True  # with the session; else only once the view has been ready


Begin = Callable[[Reporter], AbstractAsyncContextManager[OpenSnapshot]]


def show_as_server(record: Record) -> None:
    """Let ps(1) show which snapshot this process serves."""
    titles.show(f"snapmount: server of {record.snapshot.vm_name} ({record.id})", COMM)


async def run(begin: Begin, reporter: Reporter) -> None:
    """Get hold of a snapshot, show it, and end it on SIGINT, SIGTERM or SIGHUP, or when it is unmounted.

    Raises SnapmountError if it cannot be had, shown or undone, InterruptedByUserError for an end before the view was
    ready.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each disk has about a dozen connections
    ready = trio.Event()
    try:
        with received(INTERRUPTED) as came:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                nursery.start_soon(_then_cancel, scope, came)
                nursery.start_soon(_then_cancel, scope, reporter.wait_abandoned)
                await _live(begin, reporter, ready)
                scope.cancel()
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    if not ready.is_set():
        raise InterruptedByUserError(INTERRUPTED)


async def _then_cancel(scope: trio.CancelScope, wait: Callable[[], Awaitable[object]]) -> None:
    await wait()
    scope.cancel()


async def _live(begin: Begin, reporter: Reporter, ready: trio.Event) -> None:
    """The snapshot, from its beginning to its end."""
    async with begin(reporter) as opened, _shown(opened) as view, _dirty(opened) as told:
        opened.guard.shown(partial(_stop_reads, opened.images, told), view.forget_cached)
        _serve_from_now_on(opened.lease, reporter)
        opened.ends = True
        ready.set()
        reporter.ready(opened.lease.record)
        left_s = opened.lease.record.left_s
        try:
            with trio.move_on_after(math.inf if left_s is None else left_s) as expiry:
                await _serve(view, opened)
            if expiry.cancelled_caught:
                log.info("the snapshot has expired")
        finally:
            opened.ends = not await _outlives_shutdown(opened.lease.record)
            reporter.ending()


async def _outlives_shutdown(record: Record) -> bool:
    """Whether the session ends since the host is shut down, which brings SIGTERM or an unmount, and the snapshot does
    not.
    """
    if not registry.of(record).OUTLIVES_REBOOT or record.is_for_boot or record.has_expired:
        return False
    with trio.CancelScope(shield=True):
        is_left = await shutdown.is_under_way()
    if is_left:
        log.info("the host is shut down: the snapshot is left to `snapmount recover`")
    return is_left


def take_charge(lease: Lease, standby: Process | None, **changes: Any) -> None:
    """Write down that this process is the server, in the place of one that has died perhaps, and which its standby.
    Raises StateError.
    """
    left_s, server = lease.record.left_s, Process.of_pid(os.getpid())
    expires_s = None if left_s is None else time.monotonic() + left_s  # of this boot
    lease.update(server=server, standby=standby, expires_s=expires_s, **changes)


def _serve_from_now_on(lease: Lease, reporter: Reporter) -> None:
    before = lease.record.standby
    take_charge(lease, reporter.standby, state=State.ACTIVE, was_shown=True)
    if before and before != reporter.standby:
        before.send(signal.SIGKILL)


@asynccontextmanager
async def _shown(opened: OpenSnapshot) -> AsyncIterator[filesystem.View]:
    """The snapshot mounted, and published where the record says so; before the mount goes, who uses it does."""
    record = opened.lease.record
    tree = _tree(opened.lease, opened.images, await nvram.kept(opened.lease))
    async with AsyncExitStack() as stack:
        if os.geteuid() == 0 and mounts.is_mounted(record.mountpoint, record.mount_source):
            view = await _mount_over(stack, opened.lease, tree)
        else:
            await mounts.unmount(record.mount_source)
            view = await stack.enter_async_context(filesystem.mounted(tree, record.mountpoint, record.mount_source))
        stack.push_async_callback(_free_first, opened)
        if record.publication:
            await _publish(opened)
        yield view


async def _mount_over(stack: AsyncExitStack, lease: Lease, tree: Tree) -> filesystem.View:
    """Mount the view over that of a dead server: nobody sees an empty directory between the two."""
    try:
        hidden = tempfile.mkdtemp(prefix="view-", dir=lease.directory)  # another each time: a mount there may be dead
    except OSError as error:
        raise StateError(f"{lease.directory} cannot be written: {error.strerror}") from error
    view = await stack.enter_async_context(filesystem.mounted(tree, hidden, lease.record.mount_source))
    await mounts.cover(lease.record.mountpoint, hidden)
    return view


def _tree(lease: Lease, images: Sequence[Image], variables: bytes | None) -> Tree:
    """Lay out what the mount will hold, the firmware's variables where there are such; what backs LUNs is not
    listed.
    """
    snapshot, xml = lease.record.snapshot, lease.store.definition(lease.record.id)
    shown = [*zip(snapshot.disks, images, strict=True)]
    files = [File(disk.file, RawImage(image, estimate=disk.allocated_bytes)) for disk, image in shown]
    files += [File(disk.qcow2_file, Qcow2Image(image, disk.qcow2_cluster_size_bytes)) for disk, image in shown]
    files += [File(f"{image.name}.map", MapText(image)) for image in images]
    if snapshot.since is not None:
        files += [File(disk.increment_file, _increment(disk, image)) for disk, image in shown]
        files += [File(disk.dirty_file, DirtyText(image)) for disk, image in shown]
    files += [File(each.file, Constant(f"{each.url}\n".encode())) for each in snapshot.urls]
    files.append(File("domain.xml", Constant(xml.encode("utf-8", "surrogateescape"))))
    if snapshot.nvram and variables is not None:
        files.append(File(snapshot.nvram.file, Constant(variables)))
    files.append(File("snapshot.json", Constant(dump(to_document(snapshot)))))
    if lease.record.publication:
        files += [File(disk.lun_file, RawImage(image, LUN_EXTENTS), is_listed=False) for disk, image in shown]
    user = hypervisor.qemu_user(xml)
    return Tree(files, snapshot.created_ns, user.uid, user.gid, lease.record.is_open)


def _increment(disk: Disk, image: Image) -> Qcow2Increment:
    return Qcow2Increment(image, disk.qcow2_cluster_size_bytes, disk.backing)


def _dirty(opened: OpenSnapshot) -> AbstractAsyncContextManager[dirty.Service]:
    return dirty.served(opened.lease.directory, opened.lease.record.snapshot, opened.images)


async def _publish(opened: OpenSnapshot) -> None:
    """Publish the mounted files as LUNs, as the record says: after a crash too, where initiators know them."""
    lease = opened.lease
    publication, credentials = lease.record.publication, lease.store.credentials(lease.record.id)
    assert publication
    if credentials is None:
        raise StateError(f"the credentials of {publication.target.iqn} have gone")
    files = [f"{lease.record.mountpoint}/{disk.lun_file}" for disk in lease.record.snapshot.disks]
    try:
        await iscsi.publish(publication.backend, lease.directory, publication.target, files, credentials)
    except iscsi.PortalInUseError as error:
        if opened.ends:
            raise
        what = f"{error.message}, and initiators know the LUNs of snapshot {lease.record.id} there"
        remedy = f"{names.command('snapmount', 'recover', lease.record.id)}   (once the port is free)"
        raise StateError(what, remedy) from error
    portals = ", ".join(map(str, publication.target.portals))
    log.info("published by %s as %s at %s", publication.backend, publication.target.iqn, portals)


async def _free_first(opened: OpenSnapshot) -> None:
    """Before the mount goes, scratch VMs, attached disks and LUNs do."""
    publication = opened.lease.record.publication
    with trio.CancelScope(shield=True):
        try:
            if opened.ends:
                await free(opened.lease)
            elif publication:
                await iscsi.withdraw(publication.backend, opened.lease.directory, publication.target)
        except SnapmountError as error:
            log.warning("%s", error.message)  # tear_down() tries again, when nobody can read any more, and tells


async def _serve(view: filesystem.View, opened: OpenSnapshot) -> None:
    """Return when the view has been unmounted, or has served the scratch VMs it was taken for."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_then_cancel, nursery.cancel_scope, partial(tending.watch, opened.lease, opened.booting))
        await view.wait_unmounted()
        nursery.cancel_scope.cancel()


def _stop_reads(images: Sequence[OpenImage], told: dirty.Service) -> None:
    told.stop()
    for image in images:
        image.close()
