"""The source for a VM that is shut off, as the functions of the protocol Source: its images, read where they lie.

They are held with QEMU's lock for as long as the snapshot is shown, so that no VM can start writing to them.  What is
made is a socket alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ... import hypervisor
from ...core import checkpointxml, imagechain, names
from ...core.document import to_document
from ...core.image import OpenImage
from ...core.imagechain import Layer
from ...core.origin import NetworkOrigin
from ...errors import LeftoverError, StateError
from ...host import blocking, datadirectory
from ...hypervisor import directories
from ...images import disks, fingerprint, qcow2
from ...images.disks import Access
from ...records import checkpoints
from ...records.kept import Kept
from ...records.record import Record
from ...records.store import Lease
from .. import bitmaps
from ..bitmaps import CHECKPOINTS_COST, discard, keep
from ..source import ByHand, Subject, Watch
from . import state
from .planning import fingerprints, why_not
from .planning import plan_snapshot as plan
from .state import OfflineState
from .watch import OfflineWatch, watched

__all__ = [
    "CHECKPOINTS_COST",
    "OUTLIVES_REBOOT",
    "by_hand",
    "check_unused",
    "create",
    "destroy",
    "discard",
    "keep",
    "open",
    "plan",
    "release",
    "watched",
    "why_lost",
    "why_not",
]

log = logging.getLogger(__name__)

OUTLIVES_REBOOT = True  # nothing about files is lost then
LOOK_S = 30.0
REMOVE_S = 20.0


async def create(subject: Subject, lease: Lease) -> datetime:
    """Make the directory, and see that the images are still what they were when they were looked at."""
    kept = state.of(lease.record)
    await blocking.on_path(kept.directory, LOOK_S, _make, kept, done="written")
    if why := await why_not(subject.domain):
        raise why
    moment = datetime.now(UTC)
    changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
    if changed:
        raise StateError(f"{subject.domain.name}: {changed}, while the snapshot was taken", "the same command again")
    await _mark(subject, lease, kept, moment)
    return moment


async def _mark(subject: Subject, lease: Lease, kept: OfflineState, moment: datetime) -> None:
    """Make the checkpoint, if one is to be: the images are others then.  Raises StateError, SpaceError."""
    checkpoint = bitmaps.checkpoint(lease.record, kept.marked)
    if checkpoint is None:
        return
    definition = bitmaps.definition(checkpoint, lease.record.snapshot)
    description = checkpointxml.description(definition, moment, subject.xml)
    await checkpoints.keep(replace(checkpoint, source={**checkpoint.source, "description": description}))
    for disk in checkpoint.disks:
        await qcow2.add_bitmap(disk.origin, checkpoint.name)
    lease.update(source=to_document(replace(kept, fingerprints=await fingerprints(kept.chains))))


def _make(kept: OfflineState) -> None:
    datadirectory.make()
    Path(kept.directory).mkdir(mode=0o700)


@asynccontextmanager
async def open(record: Record, watch: Watch) -> AsyncIterator[Sequence[OpenImage]]:  # noqa: A001
    """The images where they lie."""
    assert isinstance(watch, OfflineWatch)
    kept = state.of(record)
    since = kept.since or ""
    changed = {each.disk: (since, bitmaps.exported(each, since)) for each in kept.increments}
    access = Access(kept.socket, kept.reader, record.read_timeout_s, _served_paths(kept), changed)
    async with disks.opened(kept.chains, access, watch.custody) as images:
        if why := await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints):
            raise StateError(why)
        yield images


def _served_paths(kept: OfflineState) -> Sequence[str]:
    """The daemon locks the first image of each disk only: an NBD export lets others write to what that rests on."""
    return list(dict.fromkeys(path for layers in kept.served.values() for path in imagechain.paths(layers)))


async def why_lost(record: Record) -> str | None:
    """See Source.  A VM that has been started and shut down meanwhile has changed its files and block devices; of
    images in a network only somebody who watched all the time can tell.
    """
    kept = state.of(record)
    changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
    if changed or all(chain.is_locked for chain in kept.chains):
        return changed
    in_network = [chain.disk for chain in kept.chains if _is_in_network(chain.layers)]
    if in_network and not (record.standby and record.standby.runs()):
        return f"nobody has watched meanwhile whether {names.listed(in_network)} was changed"
    async with hypervisor.connected(record.connect) as connection:
        domain = await connection.domain_by_uuid(record.snapshot.vm_uuid)
        return f"{domain.name} was started" if domain and await domain.is_active() else None


def _is_in_network(layers: Sequence[Layer]) -> bool:
    return any(isinstance(layer.origin, NetworkOrigin) for layer in layers)


async def release(_kept: Kept) -> None:
    """It costs no guest anything: there is none."""


async def check_unused(_kept: Kept) -> None:
    """Who used its directory was the daemon, which does not outlive the snapshot's server."""


async def destroy(kept: Kept) -> None:
    """Remove the directory, with the socket in it."""
    directory = state.of(kept).directory
    await blocking.on_path(directory, REMOVE_S, directories.remove, Path(directory), done="removed", kind=LeftoverError)


def by_hand(kept: Kept) -> ByHand:
    """See Source."""
    return ByHand(paths=[state.of(kept).directory])
