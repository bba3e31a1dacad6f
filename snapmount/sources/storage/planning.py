"""Looks at a VM and at what its disks are stored on, and decides what a snapshot by storage will be; makes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from ...core import imagechain, limits, names, plan, units
from ...core.cost import Cost, Need
from ...core.diskdefinition import DiskDefinition
from ...core.document import to_document
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Chain, Layer
from ...core.origin import NetworkOrigin
from ...core.snapshot import Disk
from ...errors import SpaceError, StateError
from ...host import blocking, datadirectory
from ...hypervisor import Domain, writers
from ...images import chain, fingerprint
from ...images.chain import Found, Owner
from ...storage.driver import Clone, ClonesRoom, Room
from .. import marking
from ..source import Plan, Subject
from . import choice, clones, increments
from .capture import BLOCK_JOB
from .choice import StorageOptions, Wanted
from .state import KIND, StorageState

log = logging.getLogger(__name__)

LOOK_S = 30.0


async def why_not(_domain: Domain) -> StateError | None:
    """It serves a VM in any state."""
    return None


async def plan_snapshot(subject: Subject) -> Plan:
    """See Source.plan()."""
    domain, chosen = subject.domain, subject.selection.chosen
    run_id = await domain.run_id()
    _check_guest(subject, run_id)
    plan.check_bypass(domain.name, chosen, subject.choice)
    found = [await _found(subject, disk, run_id) for disk in chosen]
    chains = tuple(Chain(disk.name, each.layers) for disk, each in zip(chosen, found, strict=True))
    if run_id < 0:
        await _check_writers(subject, chains)
    wanted = Wanted(
        domain.name,
        {each.disk: _written(each) for each, disk in zip(chains, chosen, strict=True) if not disk.is_readonly},
        {disk.name: disk.format for disk in chosen},
        [disk.name for disk in chosen if disk.is_uncached],
        subject.options.get(KIND, StorageOptions()),
        subject.snapshot_id,
        subject.user,
    )
    chosen_clones = await choice.choose(wanted)
    is_to_pause = run_id >= 0 and await domain.why_paused() is None
    if is_to_pause:
        await domain.block_jobs.check_none((disk.name for disk in chosen), BLOCK_JOB)
        choice.check_pause(wanted, chosen_clones)
    log.info("%s: to be paused for about %s at most", domain.name, units.moment(chosen_clones.pause_s))
    state = StorageState(
        directory=str(datadirectory.path() / names.directory(subject.snapshot_id)),
        clones=tuple(offer.clone for offer in chosen_clones.offers),
        chains=chains,
        fingerprints=(),
        reader=subject.user,
        run_id=run_id,
        max_pause_s=wanted.max_pause_s,
        needs_pause=not (wanted.max_pause_s == 0 and chosen_clones.is_atomic),
    )
    state = replace(state, fingerprints=await _fingerprints(state))
    disks = tuple(_disk(disk, each) for disk, each in zip(chosen, found, strict=True))
    unmarked = increments.unmarked(subject, chains, chosen_clones.offers)
    marked = marking.marked(subject, unmarked)
    checkpoint = subject.checkpoint if marked else None
    state = replace(state, checkpoint=checkpoint, marked=marked)
    disks = marking.planned(disks, unmarked, subject.since, (KIND,))
    needs = await _judge_space(subject, state, disks)
    pause_s = chosen_clones.pause_s if is_to_pause and state.needs_pause else 0.0
    cost = Cost(chosen_clones.drivers, pause_s, chosen_clones.guest_pays, needs)
    return Plan(disks, to_document(state), cost, checkpoint, state.directory, elsewhere=chosen_clones.elsewhere)


def _check_guest(subject: Subject, run_id: int) -> None:
    if subject.quiesce and run_id < 0:
        raise StateError(f"{subject.domain.name} is shut off: there is no guest to quiesce", "no --quiesce")


async def _found(subject: Subject, disk: DiskDefinition, run_id: int) -> Found:
    """What the disk consists of; a disk in a network is what the VM has open, for a hook alone to look at."""
    vm = subject.domain.name
    if isinstance(disk.origin, NetworkOrigin) and run_id >= 0:
        if disk.format != "raw":
            raise StateError(f"{vm}: {disk.name} is an image of the format {disk.format} in a network", "--source pull")
        sizes = (await subject.domain.disk_sizes())[disk.name]
        return Found((Layer("raw", disk.origin),), sizes.virtual, sizes.allocated)
    start = names.command("virsh", "start", vm)
    owner = Owner(vm, subject.user, "--source pull" if run_id >= 0 else f"{start}   (and --source pull)")
    found = await chain.find(owner, disk, subject.connection)
    top, *rest = found.layers
    resolved = await blocking.call(LOOK_S, _resolved, top)
    return replace(found, layers=(resolved, *rest))


def _resolved(layer: Layer) -> Layer:
    """The same, by the names that drivers take: without symbolic links."""
    if not isinstance(layer.origin, str):
        return layer
    return replace(layer, origin=os.path.realpath(layer.origin), data=layer.data and _resolved(layer.data))


def _written(each: Chain) -> Sequence[str]:
    """What the VM may write to of a disk: what its first image consists of; those below are read-only by definition."""
    top = each.layers[0]
    return [str(part.origin) for part in (top, top.data) if part]


def _disk(disk: DiskDefinition, found: Found) -> Disk:
    return Disk(
        name=disk.name,
        size_bytes=found.size_bytes,
        format=disk.format,
        origin=str(disk.origin),
        allocated_bytes=found.allocated_bytes,
        logical_block_size_bytes=disk.logical_block_size,
    )


async def _check_writers(subject: Subject, chains: Sequence[Chain]) -> None:
    """Raise StateError if a process of this host, its kernel, or another VM writes to an image of a VM that is shut
    off.
    """
    images = [writers.Image(each.disk, path) for each in chains for path in imagechain.paths(each.layers)]
    faults = await writers.faults(images, subject.domain.uuid)
    plan.refuse_writers(subject.domain.name, faults, subject.selection.chosen, subject.choice)


async def _fingerprints(state: StorageState) -> tuple[Fingerprint, ...]:
    """Of what is shared with the VM, which nobody may change."""
    return tuple([await blocking.on_path(path, LOOK_S, fingerprint.of, path) for path in state.shared])


async def _judge_space(subject: Subject, state: StorageState, disks: Sequence[Disk]) -> tuple[Need, ...]:
    """Refuse a place in which the guest's writes would soon find no space; warn of one that the worst case may fill.

    Return what they may need in each place.
    """
    worst = sum(disk.size_bytes for disk in disks)
    rooms = {room.place: room for clone in state.clones for room in await _rooms(clone)}
    for room in rooms.values():
        least = min(limits.FLOOR_BYTES, room.total_bytes // 4, worst)
        if room.free_bytes < least:
            raise SpaceError(
                f"{subject.domain.name}: {room.place} has {units.size(room.free_bytes)} free for what the guest writes "
                f"while the snapshot lives; at least {units.size(least)} must be free",
                f"--source pull   (whose scratch may lie elsewhere; or free space in {room.place})",
            )
        if isinstance(room, ClonesRoom):
            subject.warn(
                f"{room.place} has room for {units.size(room.total_bytes)} of what the guest overwrites; it is given "
                "up when that is nearly full"
            )
        elif room.free_bytes < min(worst, room.total_bytes // 2):
            subject.warn(
                f"{room.place} has {units.size(room.free_bytes)} free, and the guest may need up to "
                f"{units.size(worst)} there if it overwrites all of its disks while the snapshot lives; the snapshot "
                "is given up before the space runs out"
            )
    return tuple(Need(room.place, room.free_bytes, min(worst, room.total_bytes)) for room in rooms.values())


async def _rooms(clone: Clone) -> Sequence[Room]:
    """None if nothing can be told before the clone is made: the watch judges it."""
    try:
        return await clones.rooms(clone)
    except SpaceError:
        return []
