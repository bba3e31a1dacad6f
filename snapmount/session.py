"""One snapshot's life: plans it, makes it, shows it, and ends it when it is told to or when its mount is gone."""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from . import blocking, hypervisor, mounts, nbd, scratch, tending
from .core import domainxml, names, plan
from .core.image import Image
from .core.iscsi import Portal, target_of
from .core.snapshot import Disk, Snapshot, dump
from .core.tree import Constant, File, MapText, RawImage, Tree
from .core.user import User
from .errors import InterruptedByUserError, SnapmountError, StateError, first_cause
from .processes import Process
from .publish import fuse, iscsi
from .sources import pull
from .state import Claim, Publication, Record, State, Store
from .teardown import free, tear_down

log = logging.getLogger(__name__)
T = TypeVar("T")

CHECK_S = 10.0
LUN_EXTENTS = 256  # tgtd looks for all holes of a disk each time that an initiator asks for one


@dataclass(frozen=True)
class LunRequest:
    """How the disks shall be published over iSCSI."""

    backend: str  # 'lio', 'tgt' or 'auto'
    portals: tuple[Portal, ...]
    initiators: tuple[str, ...]  # empty: any
    mutual: bool
    secret: str | None  # None: a random one


@dataclass(frozen=True)
class Request:
    """What the user asks for: a mount, LUNs, or both."""

    vm: str
    mountpoint: str | None
    connect: str
    luns: LunRequest | None = None
    expire_s: float | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    scratch_dir: str | None = None
    quiesce: bool = False
    read_timeout_s: float = 30.0
    booting: Process | None = None  # the command that takes it to boot on it: it ends with that and its scratch VMs


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


@dataclass(frozen=True)
class _Plan:
    """A snapshot to be made: decided, nothing made yet."""

    domain: hypervisor.Domain
    xml: str
    user: User
    record: Record


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
    await _check("/dev/fuse", mounts.check_host)
    if request.mountpoint:
        await _check(request.mountpoint, mounts.check_mountpoint, request.mountpoint)
    backend = await iscsi.choose(request.luns.backend) if request.luns else ""
    async with AsyncExitStack() as stack:
        async with hypervisor.connected(request.connect) as connection:
            planned = await _plan(request, store, connection, reporter)
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


async def _check(path: str, function: Callable[..., T], *args: object) -> T:
    """A check of the host that may block, on a file server that does not answer for instance."""
    try:
        return await blocking.call(CHECK_S, function, *args)
    except trio.TooSlowError:
        raise StateError(f"{path}: its file system did not answer within {CHECK_S:g} s") from None


async def _undo(claim: Claim) -> None:
    with trio.CancelScope(shield=True):
        await tear_down(claim)


def _expiry(request: Request) -> datetime | None:
    return datetime.now(UTC) + timedelta(seconds=request.expire_s) if request.expire_s else None


async def _plan(request: Request, store: Store, connection: hypervisor.Hypervisor, reporter: Reporter) -> _Plan:
    """Look at the VM and the host and decide."""
    domain = await connection.domain(request.vm)
    await _check_state(domain, store)
    xml = await domain.xml()
    selection = plan.select(domain.name, domainxml.disks(xml), request.only, request.exclude)
    sizes = await domain.allocation()
    parent = Path(request.scratch_dir or scratch.default_parent())
    warning = await _judge_space(domain.name, parent, [sizes[disk.name] for disk in selection.chosen])
    if warning:
        reporter.warn(warning)
    snapshot = Snapshot(
        id=store.new_id(),
        vm_name=domain.name,
        vm_uuid=domain.uuid,
        created=datetime.now(UTC),
        source="pull",
        quiesced=request.quiesce,
        disks=tuple(Disk(d.name, sizes[d.name][0], d.format, d.origin) for d in selection.chosen),
        left_out=selection.left_out,
    )
    hidden = scratch.view(snapshot.id) if request.booting else store.hidden_mountpoint(snapshot.id)
    mountpoint = request.mountpoint or str(hidden)
    log.info("%s: disks %s, scratch files below %s", domain.name, ", ".join(d.name for d in snapshot.disks), parent)
    directory = parent / f"snapmount-{snapshot.id}"
    record = Record(
        snapshot=snapshot,
        connect=request.connect,
        mountpoint=await _check(mountpoint, os.path.realpath, mountpoint),
        mount_source=names.mount_source(domain.name, snapshot.id),
        socket=pull.socket_path(await domain.run_id(), snapshot.id, directory),
        scratch=str(directory),
        server=Process.of_pid(os.getpid()),
        is_hidden=request.mountpoint is None,
        is_for_boot=request.booting is not None,
    )
    return _Plan(domain, xml, hypervisor.qemu_user(xml), record)


async def _check_state(domain: hypervisor.Domain, store: Store) -> None:
    if not await domain.is_active():
        raise StateError(
            f"{domain.name} is shut off; snapshots of VMs that are shut off (offline) are not there yet",
            names.command("virsh", "start", domain.name),
        )
    job = await domain.backup_job()
    if job is None:
        return
    socket = domainxml.backup_socket(job)
    for record in store.load_all()[0]:
        if record.socket == socket:
            raise StateError(
                f"{domain.name} has a snapshot already: {record.id}, {record.whereabouts}",
                names.command("snapmount", "delete", record.id),
            )
    raise StateError(
        f"{domain.name} has a backup job already, of another program; a VM can have one at a time",
        f"{names.command('virsh', 'domjobinfo', domain.name)}   (and wait for its end)",
    )


async def _judge_space(vm: str, parent: Path, sizes: list[tuple[int, int]]) -> str | None:
    free = await _check(str(parent), scratch.free_bytes, parent)
    virtual, allocated = (sum(column) for column in zip(*sizes, strict=True))
    return plan.judge(vm, str(parent), plan.Space(free, virtual, allocated))


async def _make(request: Request, planned: _Plan, claim: Claim) -> None:
    """Make the scratch directory and start the job: the point in time."""
    domain, record = planned.domain, planned.record
    await scratch.create(Path(record.scratch), planned.user, domain.qemu_pid(request.connect))
    if record.is_for_boot:
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


def _tree(snapshot: Snapshot, images: Sequence[Image], planned: _Plan, *, with_luns: bool) -> Tree:
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
    """Before the mount goes, scratch VMs and LUNs do."""
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
