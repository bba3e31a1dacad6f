"""Finds out what has changed in the disks of a snapshot since a checkpoint, by comparing the clones of both."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from ...core.checkpoint import MarkedDisk, Since
from ...core.diskdefinition import DiskDefinition
from ...core.extents import HOLE, ZERO, Extent
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Chain
from ...core.lifecycle import State
from ...core.snapshot import Disk
from ...errors import SnapmountError, SpaceError, StateError, UnreachableError, first_cause
from ...host import blocking
from ...images import qcow2changes
from ...records.store import Lease
from ...storage.driver import Offer
from ..source import Subject
from . import changes, clones, marks, state
from .marks import StorageMarks
from .state import StorageState
from .watch import StorageWatch, watched

log = logging.getLogger(__name__)

WRITE_S = 30.0
SECTOR_BYTES = 512


def unmarked(subject: Subject, chains: Sequence[Chain], offers: Sequence[Offer]) -> Mapping[str, str]:
    """The disks whose changes since a clone cannot be told, and why."""
    known = {origin: offer for offer in offers for origin in offer.clone.origins}
    pairs = zip(subject.selection.chosen, chains, strict=True)
    reasons = {disk.name: _why_unmarked(disk, chain, known) for disk, chain in pairs}
    return {name: why for name, why in reasons.items() if why}


def _why_unmarked(disk: DiskDefinition, chain: Chain, offers: Mapping[str, Offer]) -> str | None:
    if disk.is_readonly:
        return "it is read-only, and so not cloned"
    offer = offers[str(chain.layers[0].origin)]
    if offer.gives_url:
        return "its snapshot cannot be read here"
    if not offer.is_comparable:
        return f"its clone by {offer.clone.driver} cannot be compared with a later one"
    if disk.format not in ("raw", "qcow2") or chain.layers[0].data:
        kind = "qcow2 image with a data file" if chain.layers[0].data else f"{disk.format} image"
        return f"what has changed in a {kind} cannot be told from its clones"
    return None


async def compared(lease: Lease, since: Since) -> tuple[Disk, ...]:
    """The disks, once it is known what has changed in them, and kept; with why each is full of which it is not.  The
    guest writes meanwhile: the space is watched.

    Raises SpaceError, UnreachableError.
    """
    record = lease.record
    try:
        async with watched(record, lease.store) as watch, trio.open_nursery() as nursery:
            nursery.start_soon(_raise_loss, watch, record.snapshot.vm_name)
            disks = await _all_noted(state.of(record), record.snapshot.disks, since)
            nursery.cancel_scope.cancel()
            return disks
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    raise AssertionError


async def _raise_loss(watch: StorageWatch, vm: str) -> None:
    loss = await watch.wait_lost()
    kind = SpaceError if loss.state is State.GAVE_UP else UnreachableError
    with trio.CancelScope(shield=True):
        await watch.release(loss, lambda _: None)
    raise kind(f"{vm}: the snapshot is {loss.state.value} before it is readable: {loss.reason}", loss.remedy)


async def _all_noted(kept: StorageState, disks: Sequence[Disk], since: Since) -> tuple[Disk, ...]:
    if since.checkpoint is None:
        return tuple(disks)
    try:
        older = marks.of(since.checkpoint)
    except StateError as error:
        return tuple(replace(disk, full=disk.full or error.message) for disk in disks)
    found = []
    for disk in disks:
        marked = since.checkpoint.disk(disk.name)
        found.append(disk if disk.full or marked is None else await _noted(kept, _Pair(disk, marked, older)))
    return tuple(found)


@dataclass(frozen=True)
class _Pair:
    """A disk, and what it was at the checkpoint."""

    disk: Disk
    marked: MarkedDisk
    older: StorageMarks


async def _noted(kept: StorageState, pair: _Pair) -> Disk:
    name = pair.disk.name
    try:
        found = changes.known(await _changed(kept, pair), pair.marked.size_bytes)
        await blocking.on_path(kept.directory, WRITE_S, changes.write, kept.directory, name, found, done="written")
    except SnapmountError as error:
        log.warning("%s: all counts as changed: %s", name, error.message)
        return replace(pair.disk, full=error.message)
    log.info("%s: %d extents have changed", name, len(found.extents))
    return pair.disk


async def _changed(kept: StorageState, pair: _Pair) -> Sequence[Extent]:
    """Raises SnapmountError if that cannot be told."""
    name = pair.disk.name
    now = next(chain for chain in kept.chains if chain.disk == name)
    then = next((chain for chain in pair.older.chains if chain.disk == name), None)
    if then is None or then.layers != now.layers:
        raise StateError("it consists of other images than at the checkpoint")
    below = {path for layer in now.layers[1:] for path in layer.paths}
    if _of(below, kept.fingerprints) != _of(below, pair.older.fingerprints):
        raise StateError("an image that it rests on has been changed since the checkpoint")
    origin = str(now.layers[0].origin)
    older = pair.older.of(origin)
    newer = next((clone for clone in kept.clones if origin in clone.origins), None)
    if older is None or newer is None:
        raise StateError(f"{origin} was not cloned at the checkpoint")
    older = await clones.activate(older)
    found = await clones.changed(older, newer, origin)
    if now.layers[0].format == "raw":
        frozen = older.of(origin), newer.of(origin)
        return [*found, *await blocking.on_path(frozen[1], WRITE_S, _cut_off, *frozen)]
    images = qcow2changes.Images(older.of(origin), newer.of(origin), is_alone=len(now.layers) == 1)
    return await images.differing(found)


def _cut_off(older: str, newer: str) -> list[Extent]:
    """What a file has lost of the sector that it ends in now: the disk has zeros there, up to the sector's end."""
    before, now = os.stat(older).st_size, os.stat(newer).st_size
    lost = min(before, -(-now // SECTOR_BYTES) * SECTOR_BYTES) - now
    return [Extent(now, lost, HOLE | ZERO)] if lost > 0 else []


def _of(paths: Collection[str], fingerprints: Sequence[Fingerprint]) -> set[Fingerprint]:
    return {each for each in fingerprints if each.path in paths}
