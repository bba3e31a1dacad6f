"""Looks at the VM and the host and decides what a snapshot will be; makes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from .. import hypervisor
from ..core import domainxml, names, plan
from ..core.diskdefinition import DiskDefinition
from ..core.iscsi import PortalRequest
from ..core.lifecycle import State
from ..core.plan import Choice
from ..core.qcow2layout import Backing
from ..core.snapshot import Disk, Snapshot
from ..errors import NotFoundError, StateError
from ..host import blocking, datadirectory, mounts
from ..host.processes import Process
from ..hypervisor import writers
from ..records.record import Record
from ..records.store import Store
from ..sources import registry
from ..sources.source import Plan as SourcePlan
from ..sources.source import Source, Subject
from . import checkpoints

log = logging.getLogger(__name__)

CHECK_S = 10.0
NO_LUNS = "no --iscsi   (a mount shows the URLs)"


@dataclass(frozen=True)
class LunRequest:
    """How the disks shall be published over iSCSI."""

    backend: str  # 'lio', 'tgt' or 'auto'
    portals: tuple[PortalRequest, ...]
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
    source: str | None = None  # which kind shall take it; None: the one that serves the VM as it is
    options: Mapping[str, Any] = field(default_factory=dict)  # by kind of source, which alone reads its own
    quiesce: bool = False
    checkpoint: str | None = None  # the name of one to be made; '': any name
    since: str | None = None  # the checkpoint from which on changes are asked for
    backing: Mapping[str, Backing] = field(default_factory=dict)  # by disk: what the qcow2 file of its changes rests on
    allow_other: bool = False
    read_timeout_s: float = 30.0
    cluster_bytes: int | None = None  # of the qcow2 files; None: as is usual for a disk of that size
    verbs_meant: tuple[str, ...] = ()  # that the VM's name may be a slip for
    booting: Process | None = None  # the command that takes it to boot on it: it ends with that and its scratch VMs

    @property
    def choice(self) -> Choice:
        """The disks that are asked for."""
        verb = ["boot"] if self.booting else ["--iscsi"] if self.luns else []
        place = [self.mountpoint] if self.mountpoint else []
        return Choice(self.only, self.exclude, ("snapmount", *verb, self.vm, *place))


@dataclass(frozen=True)
class Plan:
    """A snapshot to be made: decided, nothing made yet."""

    subject: Subject
    record: Record
    directory: str | None  # that the source will make


async def check_host(request: Request) -> None:
    """Raise MissingError if this host cannot mount the view."""
    await blocking.on_path("/dev/fuse", CHECK_S, mounts.check_host, request.allow_other)


async def make(request: Request, store: Store, connection: hypervisor.Hypervisor, warn: Callable[[str], None]) -> Plan:
    """Look at the VM and the host and decide."""
    domain = await domain_of(request, connection)
    if request.mountpoint:
        await blocking.on_path(request.mountpoint, CHECK_S, mounts.check_mountpoint, request.mountpoint)
    source = await registry.serving(domain, request.source)
    subject = await subject_of(request, store, connection, domain, warn)
    try:
        planned = await judged(source, subject)
    except StateError:
        check_alone(domain, request.connect, store)  # what refuses may be that of a snapshot taken since then
        raise
    if request.luns and {disk.name for disk in planned.disks} <= set(planned.elsewhere):
        what = f"{domain.name}: this host will be able to read no disk of the snapshot, of which there are URLs alone"
        raise StateError(what, NO_LUNS)
    snapshot = Snapshot(
        id=subject.snapshot_id,
        vm_name=domain.name,
        vm_uuid=domain.uuid,
        created=datetime.now(UTC),
        source=planned.state["kind"],
        quiesced=request.quiesce,
        disks=_shown(planned.disks, request),
        left_out=subject.selection.left_out,
        checkpoint=planned.checkpoint,
        since=subject.since.name if subject.since else None,
    )
    log.info("%s: disks %s, by %s", domain.name, ", ".join(disk.name for disk in snapshot.disks), snapshot.source)
    mountpoint = request.mountpoint or str(datadirectory.view(snapshot.id))
    record = Record(
        snapshot=snapshot,
        connect=request.connect,
        mountpoint=await blocking.on_path(mountpoint, CHECK_S, os.path.realpath, mountpoint),
        mount_source=names.mount_source(domain.name, snapshot.id),
        source=planned.state,
        server=Process.of_pid(os.getpid()),
        read_timeout_s=request.read_timeout_s,
        is_hidden=request.mountpoint is None,
        is_for_boot=request.booting is not None,
        is_open=request.allow_other,
    )
    return Plan(subject, record, planned.directory)


def _shown(disks: Sequence[Disk], request: Request) -> tuple[Disk, ...]:
    """The disks, with what is asked of their qcow2 files.  Raises NotFoundError, UsageError."""
    for name in request.backing:
        if name not in [disk.name for disk in disks]:
            known = names.listed([disk.name for disk in disks])
            raise NotFoundError(f"--backing names {name}, which is no disk of the snapshot; it has {known}")
    clustered = [disk.with_clusters(request.cluster_bytes) for disk in disks]
    return tuple(replace(disk, backing=request.backing.get(disk.name)) for disk in clustered)


def check_alone(domain: hypervisor.Domain, connect: str, store: Store) -> None:
    """Raise StateError if another process is taking, or has taken, a snapshot of the VM since we have looked."""
    for other in store.load_all()[0]:
        is_of_same = (other.snapshot.vm_uuid, other.connect) == (domain.uuid, connect)
        if is_of_same and other.state.is_alive and store.is_served(other.id):
            is_shown = other.state is State.ACTIVE
            where = other.whereabouts if is_shown else f"{other.state.value}, of {store.holder(other.id)}"
            raise StateError(
                f"{other.snapshot.vm_name} has a snapshot already: {other.id}, {where}",
                names.command("snapmount", "delete", other.id),
            )


async def judged(source: Source, subject: Subject) -> SourcePlan:
    """What the source would make, once it is known that nobody writes past the VM's QEMU.  Only looks.

    Raises SnapmountError if it can make no snapshot.
    """
    planned = await source.plan(subject)
    await _check_writers(subject.domain, subject.selection.chosen, subject.connection, subject.choice)
    return planned


async def subject_of(
    request: Request,
    store: Store,
    connection: hypervisor.Hypervisor,
    domain: hypervisor.Domain,
    warn: Callable[[str], None],
) -> Subject:
    """What a source is told of the VM and the request.  Raises NotFoundError, StateError."""
    xml, snapshot_id = await domain.xml(), store.new_id()
    return Subject(
        snapshot_id=snapshot_id,
        domain=domain,
        connection=connection,
        connect=request.connect,
        xml=xml,
        user=hypervisor.qemu_user(xml),
        selection=plan.select(domain.name, domainxml.disks(xml), request.choice),
        choice=request.choice,
        quiesce=request.quiesce,
        checkpoint=await checkpoints.name_of_new(domain.name, domain.uuid, request.checkpoint, snapshot_id),
        since=await checkpoints.meant(domain.uuid, request.since),
        options=request.options,
        others=store.load_all()[0],
        warn=warn,
    )


async def domain_of(request: Request, connection: hypervisor.Hypervisor) -> hypervisor.Domain:
    """The VM, which is looked up first: a verb that was mistyped is taken for one.  Raises NotFoundError."""
    try:
        return await connection.domain(request.vm)
    except NotFoundError as error:
        if not request.verbs_meant:
            raise
        verbs = " or ".join(request.verbs_meant)
        raise NotFoundError(f"{error.message}; did you mean the verb {verbs}?", "snapmount --help") from None


async def _check_writers(
    domain: hypervisor.Domain, chosen: Sequence[DiskDefinition], connection: hypervisor.Hypervisor, choice: Choice
) -> None:
    """Raise StateError if others than the VM's QEMU write to one of the disks, as far as this host can tell."""
    local = {disk.name for disk in chosen if disk.kind != "network"}
    paths = [*await domain.layers(), *((disk.name, str(disk.data_file)) for disk in chosen)]
    images = [writers.Image(name, path) for name, path in paths if name in local and path.startswith("/")]
    faults = await writers.faults(images, domain.uuid)
    named_only = [disk for disk in chosen if disk.kind in ("network", "volume")]  # nothing of this host's leads to them
    if named_only:
        others = await connection.written_by_others(domain.uuid, named_only)
        faults |= {name: f"is {other} too, which runs" for name, other in others.items()}
    plan.refuse_writers(domain.name, faults, chosen, choice)
