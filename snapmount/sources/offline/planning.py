"""Looks at a VM that is shut off, and decides what a snapshot of it will be; makes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ...core import imagechain, names, plan
from ...core.cost import Cost
from ...core.diskdefinition import DiskDefinition
from ...core.document import to_document
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Chain
from ...core.snapshot import Disk
from ...errors import StateError
from ...host import blocking, datadirectory
from ...hypervisor import Domain, writers
from ...images import chain, fingerprint
from ...images.chain import Found, Owner
from .. import bitmaps, marking
from ..source import Plan, Subject
from .state import OfflineState

LOOK_S = 30.0
COST = Cost("images", 0.0, "nothing: there is none")


async def plan_snapshot(subject: Subject) -> Plan:
    """See Source.plan()."""
    if subject.quiesce:
        raise StateError(f"{subject.domain.name} is shut off: there is no guest to quiesce", "no --quiesce")
    chosen = subject.selection.chosen
    _check_bypass(subject)
    vm = Owner(subject.domain.name, subject.user, names.command("virsh", "start", subject.domain.name))
    found = [await chain.find(vm, disk, subject.connection) for disk in chosen]
    chains = tuple(Chain(disk.name, each.layers) for disk, each in zip(chosen, found, strict=True))
    await _check_writers(subject, chains)
    await _warn(subject, chains)
    directory = datadirectory.path() / names.directory(subject.snapshot_id)
    disks = tuple(_disk(disk, each) for disk, each in zip(chosen, found, strict=True))
    unmarked = _far(subject) | await bitmaps.unmarked(subject)
    marked = marking.marked(subject, unmarked)
    disks = marking.planned(disks, unmarked, subject.since, bitmaps.KINDS)
    disks = await bitmaps.at_rest(disks, subject.since)
    state = OfflineState(
        directory=str(directory),
        chains=chains,
        fingerprints=await fingerprints(chains),
        reader=subject.user,
        marked=marked,
        since=subject.since.name if subject.since else None,
        increments=bitmaps.increments(disks, subject.since),
    )
    return Plan(
        disks=disks,
        state=to_document(state),
        cost=COST,
        checkpoint=subject.checkpoint if marked else None,
        directory=str(directory),
    )


def _far(subject: Subject) -> dict[str, str]:
    """The disks whose images cannot be given a bitmap while no QEMU runs, and why."""
    far = [disk.name for disk in subject.selection.chosen if not str(disk.origin).startswith("/")]
    return dict.fromkeys(
        far, "it is no file or block device of this host, which could be looked at while the VM is off"
    )


async def why_not(domain: Domain) -> StateError | None:
    """What runs writes to its images."""
    if not await domain.is_active():
        return None
    shutdown = names.command("virsh", "shutdown", domain.name)
    return StateError(f"{domain.name} is not shut off", f"{shutdown}   (or no --source offline)")


def _disk(disk: DiskDefinition, found: Found) -> Disk:
    return Disk(
        name=disk.name,
        size_bytes=found.size_bytes,
        format=disk.format,
        origin=str(disk.origin),
        allocated_bytes=found.allocated_bytes,
        logical_block_size_bytes=disk.logical_block_size,
    )


def _check_bypass(subject: Subject) -> None:
    """Others can write to what is shared, whether the VM runs or not."""
    chosen = subject.selection.chosen
    shared = [disk.name for disk in chosen if disk.is_shareable and not disk.is_readonly]
    faults = dict.fromkeys(shared, "may be shared with other VMs and hosts (<shareable/>)")
    plan.refuse_writers(subject.domain.name, faults, chosen, subject.choice)


async def _check_writers(subject: Subject, chains: Sequence[Chain]) -> None:
    """Raise StateError if a process of this host, its kernel, or another VM writes to one of the images."""
    images = [writers.Image(each.disk, path) for each in chains for path in imagechain.paths(each.layers)]
    faults = await writers.faults(images, subject.domain.uuid)
    chosen = subject.selection.chosen
    others = await subject.connection.written_by_others(subject.domain.uuid, chosen)
    faults |= {name: f"is {other} too, which runs" for name, other in others.items()}
    plan.refuse_writers(subject.domain.name, faults, chosen, subject.choice)


async def _warn(subject: Subject, chains: Sequence[Chain]) -> None:
    vm = subject.domain.name
    if await subject.domain.is_saved():
        subject.warn(
            f"{vm} is saved: what its guest has not written to its disks lies in its saved memory, not in the snapshot"
        )
    loose = [each.disk for each in chains if not each.is_locked]
    if len(loose) < len(chains):
        subject.warn(f"{vm} cannot be started until the snapshot is deleted: QEMU's lock of its images refuses it")
    if loose:
        subject.warn(f"the snapshot is lost if {vm} is started: {names.listed(loose)} cannot be locked, being no file")


async def fingerprints(chains: Sequence[Chain]) -> tuple[Fingerprint, ...]:
    """Of each file once, also where several disks rest on it."""
    paths = list(dict.fromkeys(path for each in chains for path in imagechain.paths(each.layers)))
    return tuple([await blocking.on_path(path, LOOK_S, fingerprint.of, path) for path in paths])
