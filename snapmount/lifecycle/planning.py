"""Looks at the VM and the host and decides what a snapshot will be; makes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .. import hypervisor
from ..core import domainxml, names, plan
from ..core.diskdefinition import DiskDefinition
from ..core.iscsi import PortalRequest
from ..core.plan import Choice
from ..core.snapshot import Disk, Snapshot
from ..core.space import DEFAULT_TERMS, Terms
from ..core.user import User
from ..errors import NotFoundError, StateError
from ..host import blocking, datadirectory, mounts
from ..host.processes import Process
from ..hypervisor import writers
from ..records.record import Record
from ..records.store import Store
from ..sources.pull import job, state
from ..sources.pull.scratch import room
from ..sources.pull.state import PullState

log = logging.getLogger(__name__)

CHECK_S = 10.0


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
    scratch_dir: str | None = None
    terms: Terms = DEFAULT_TERMS  # how it shall use scratch space
    quiesce: bool = False
    allow_other: bool = False
    read_timeout_s: float = 30.0
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

    domain: hypervisor.Domain
    xml: str
    user: User
    record: Record


async def check_host(request: Request) -> None:
    """Raise MissingError where this host cannot mount the view."""
    await blocking.on_path("/dev/fuse", CHECK_S, mounts.check_host, request.allow_other)


async def make(request: Request, store: Store, connection: hypervisor.Hypervisor, warn: Callable[[str], None]) -> Plan:
    """Look at the VM and the host and decide."""
    domain = await _domain(request, connection)
    if request.mountpoint:
        await blocking.on_path(request.mountpoint, CHECK_S, mounts.check_mountpoint, request.mountpoint)
    await _check_state(domain, store)
    xml = await domain.xml()
    selection = plan.select(domain.name, domainxml.disks(xml), request.choice)
    version = await domain.qemu_version(request.connect)
    plan.check_iothreads(domain.name, selection.chosen, request.choice, version)
    await domain.block_jobs.check_none(disk.name for disk in selection.chosen)
    await _check_writers(domain, selection.chosen, connection, request.choice)
    sizes = await domain.disk_sizes()
    disks = tuple(
        Disk(
            name=disk.name,
            size_bytes=sizes[disk.name].virtual,
            format=disk.format,
            origin=str(disk.origin),
            allocated_bytes=sizes[disk.name].allocated,
            logical_block_size_bytes=disk.logical_block_size,
        )
        for disk in selection.chosen
    )
    user = hypervisor.qemu_user(xml)
    in_use = await _devices_in_use(connection, store) if request.terms.devices else {}
    files = [str(disk.origin) for disk in selection.chosen if disk.kind == "file"]
    needs = room.Needs(domain.name, disks, files, user, in_use)
    parent, terms = await room.find(needs, request.scratch_dir, request.terms, warn)
    snapshot = Snapshot(
        id=store.new_id(),
        vm_name=domain.name,
        vm_uuid=domain.uuid,
        created=datetime.now(UTC),
        source="pull",
        quiesced=request.quiesce,
        disks=disks,
        left_out=selection.left_out,
    )
    mountpoint = request.mountpoint or str(datadirectory.view(snapshot.id))
    log.info("%s: disks %s, scratch files below %s", domain.name, ", ".join(d.name for d in snapshot.disks), parent)
    directory = parent / f"snapmount-{snapshot.id}"
    domainxml.check_scratch(xml, str(directory))
    socket = job.socket_path(await domain.run_id(), snapshot.id, directory)
    record = Record(
        snapshot=snapshot,
        connect=request.connect,
        mountpoint=await blocking.on_path(mountpoint, CHECK_S, os.path.realpath, mountpoint),
        mount_source=names.mount_source(domain.name, snapshot.id),
        source=PullState(socket, str(directory), terms).document(),
        server=Process.of_pid(os.getpid()),
        read_timeout_s=request.read_timeout_s,
        is_hidden=request.mountpoint is None,
        is_for_boot=request.booting is not None,
        is_open=request.allow_other,
    )
    return Plan(domain, xml, user, record)


async def _domain(request: Request, connection: hypervisor.Hypervisor) -> hypervisor.Domain:
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
    """Raise StateError where others than the VM's QEMU write to one of the disks, as far as this host can tell."""
    local = {disk.name for disk in chosen if disk.kind != "network"}
    paths = [*await domain.layers(), *((disk.name, str(disk.data_file)) for disk in chosen)]
    images = [writers.Image(name, path) for name, path in paths if name in local and path.startswith("/")]
    faults = await writers.faults(images, domain.uuid)
    named_only = [disk for disk in chosen if disk.kind in ("network", "volume")]  # nothing of this host's leads to them
    if named_only:
        others = await connection.written_by_others(domain.uuid, named_only)
        faults |= {name: f"is {other} too, which runs" for name, other in others.items()}
    plan.refuse_writers(domain.name, faults, chosen, choice)


async def _devices_in_use(connection: hypervisor.Hypervisor, store: Store) -> dict[str, str]:
    """The block devices of VMs and of other snapshots, with what each is."""
    found = await connection.block_disks()
    for record in store.load_all()[0]:
        for disk, device in state.of(record).terms.devices:
            found[device] = f"the scratch of {disk} of snapshot {record.id}"
    return found


async def _check_state(domain: hypervisor.Domain, store: Store) -> None:
    if not await domain.is_active():
        raise StateError(
            f"{domain.name} is shut off; snapshots of VMs that are shut off (offline) are not there yet",
            names.command("virsh", "start", domain.name),
        )
    running = await domain.backup_job()
    if running is None:
        return
    socket = domainxml.backup_socket(running)
    for record in store.load_all()[0]:
        if state.of(record).socket == socket:
            raise StateError(
                f"{domain.name} has a snapshot already: {record.id}, {record.whereabouts}",
                names.command("snapmount", "delete", record.id),
            )
    raise StateError(
        f"{domain.name} has a backup job already, of another program; a VM can have one at a time",
        f"{names.command('virsh', 'domjobinfo', domain.name)}   (and wait for its end)",
    )
