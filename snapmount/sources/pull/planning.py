"""Looks at a running VM, and decides what a snapshot by a backup job will be; makes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core import domainxml, names, units
from ...core.cost import Cost, Need
from ...core.document import to_document
from ...core.plan import check_bypass
from ...core.snapshot import Disk
from ...errors import StateError
from .. import bitmaps, marking
from ..source import Plan, Subject
from . import job, refusals, state
from .scratch import places, room
from .space import CLUSTER_BYTES, DEFAULT_POLICY, ScratchPolicy
from .state import KIND, PullState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScratchOptions:
    """What the user asks for scratch space."""

    directory: str | None = None  # None: the best there is
    policy: ScratchPolicy = DEFAULT_POLICY


async def plan(subject: Subject) -> Plan:
    """See Source."""
    domain, chosen = subject.domain, subject.selection.chosen
    await _check_no_job(subject)
    check_bypass(domain.name, chosen, subject.choice)
    version = await domain.qemu_version(subject.connect)
    refusals.check_iothreads(domain.name, chosen, subject.choice, version)
    await domain.block_jobs.check_none(disk.name for disk in chosen)
    disks = await _disks(subject)
    wish = subject.options.get(KIND, ScratchOptions())
    in_use = await _devices_in_use(subject) if wish.policy.devices else {}
    files = [str(disk.origin) for disk in chosen if disk.kind == "file"]
    needs = room.Needs(domain.name, disks, files, subject.user, in_use)
    parent, policy = await room.find(needs, wish.directory, wish.policy, subject.warn)
    log.info("%s: scratch files below %s", domain.name, parent)
    directory = parent / names.directory(subject.snapshot_id)
    domainxml.check_scratch(subject.xml, str(directory))
    socket = job.socket_path(await domain.run_id(), subject.snapshot_id, directory)
    cost = await _cost(disks, parent, policy)
    unmarked = await bitmaps.unmarked(subject)
    marked = marking.marked(subject, unmarked)
    return Plan(
        disks=marking.planned(disks, unmarked, subject.since, bitmaps.KINDS),
        state=to_document(PullState(socket, str(directory), policy, marked)),
        cost=cost,
        directory=str(directory),
        checkpoint=subject.checkpoint if marked else None,
    )


async def _cost(disks: Sequence[Disk], parent: Path, policy: ScratchPolicy) -> Cost:
    in_files = [(disk.size_bytes, 0) for disk in disks if not policy.device(disk.name)]
    most_bytes = policy.remaining_bytes(in_files)
    needs = (Need(str(parent), await places.free_bytes(parent), most_bytes),) if in_files else ()
    pays = f"its first write to each {units.size(CLUSTER_BYTES)} waits until what was there is copied to scratch"
    return Cost("backup job", 0.0, f"{pays}, and its QEMU serves what reads the snapshot", needs)


async def _disks(subject: Subject) -> tuple[Disk, ...]:
    sizes = await subject.domain.disk_sizes()
    return tuple(
        Disk(
            name=disk.name,
            size_bytes=sizes[disk.name].virtual,
            format=disk.format,
            origin=str(disk.origin),
            allocated_bytes=sizes[disk.name].allocated,
            logical_block_size_bytes=disk.logical_block_size,
        )
        for disk in subject.selection.chosen
    )


async def _devices_in_use(subject: Subject) -> Mapping[str, str]:
    """The block devices of VMs and of other snapshots, with what each is."""
    found = await subject.connection.block_disks()
    for record in subject.others:
        if record.source["kind"] == KIND:
            for disk, device in state.of(record).policy.devices:
                found[device] = f"the scratch of {disk} of snapshot {record.id}"
    return found


async def _check_no_job(subject: Subject) -> None:
    """Raise StateError if the VM has a backup job: it can have one at a time."""
    domain = subject.domain
    running = await domain.backup_job()
    if running is None:
        return
    socket = domainxml.backup_socket(running)
    for record in subject.others:
        if record.source["kind"] == KIND and state.of(record).socket == socket:
            raise StateError(
                f"{domain.name} has a snapshot already: {record.id}, {record.whereabouts}",
                names.command("snapmount", "delete", record.id),
            )
    raise StateError(
        f"{domain.name} has a backup job already, of another program; a VM can have one at a time",
        f"{names.command('virsh', 'domjobinfo', domain.name)}   (and wait for its end)",
    )
