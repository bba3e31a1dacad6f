"""The source for VMs whose disks are stored on what can clone them, as the functions of the protocol Source.

What it makes is the clones, and a directory for a socket.  Nothing of it rests on QEMU: it outlives the VM.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ...core import imagechain, units
from ...core.document import to_document
from ...core.image import OpenImage
from ...core.snapshot import DiskUrl
from ...errors import (
    LeftoverError,
    NotFoundError,
    SnapmountError,
    StateError,
)
from ...host import blocking, datadirectory
from ...hypervisor import directories
from ...images import disks, fingerprint
from ...images.disks import Access
from ...records.kept import Kept
from ...records.record import Record
from ...records.store import Lease
from ...storage.driver import Clone
from ..source import ByHand, Subject, Watch
from . import capture, changes, clones, increments, marks, state
from .changes import ComparedImage
from .keeping import keep
from .marks import discard
from .planning import plan_snapshot as plan
from .planning import why_not
from .state import StorageState
from .watch import StorageWatch, watched

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

OUTLIVES_REBOOT = True
CHECKPOINTS_COST = True  # what the guest overwrites takes new space
LOOK_S = 30.0
REMOVE_S = 20.0


async def create(subject: Subject, lease: Lease) -> datetime:
    """Make the clones: the point in time."""
    kept = state.of(lease.record)
    await blocking.on_path(kept.directory, LOOK_S, _make, kept, done="written")
    await marks.write(lease.record)
    await clones.prepare(kept)
    moment, pause_s = await capture.take(subject, lease, kept)
    log.info("%s: cloned, paused for %s: this is the snapshot's moment", subject.domain.name, units.moment(pause_s))
    kept = replace(await clones.activated(kept), pause_s=pause_s)
    snapshot = lease.record.snapshot
    readable = tuple(disk for disk in snapshot.disks if disk.name not in kept.urls)
    urls = tuple(DiskUrl(name, url) for name, url in kept.urls.items())
    snapshot = replace(snapshot, created=moment, disks=readable, urls=urls)
    lease.update(source=to_document(kept), snapshot=snapshot)
    await marks.write(lease.record)  # again: now it is known where they are
    if subject.since:
        lease.update(snapshot=replace(snapshot, disks=await increments.compared(lease, subject.since)))
    return moment


def _make(kept: StorageState) -> None:
    datadirectory.make()
    Path(kept.directory).mkdir(mode=0o700)


@asynccontextmanager
async def open(record: Record, watch: Watch) -> AsyncIterator[Sequence[OpenImage]]:  # noqa: A001
    """The clones, with what they rest on."""
    assert isinstance(watch, StorageWatch)
    kept = await clones.activated(state.of(record))
    try:
        chains = await clones.shown(kept)
    except NotFoundError as error:
        raise StateError(error.message, error.remedy) from error
    access = Access(kept.socket, kept.reader, record.read_timeout_s, _locked_paths(kept))
    async with disks.opened(chains, access, watch.custody) as images:
        changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
        if changed:
            raise StateError(changed)
        yield [await _compared_with(image, kept) for image in images]


async def _compared_with(image: OpenImage, kept: StorageState) -> OpenImage:
    found = await blocking.on_path(kept.directory, LOOK_S, changes.read, kept.directory, image.name)
    return image if found is None else ComparedImage(image, found)


def _locked_paths(kept: StorageState) -> Sequence[str]:
    """What the daemon reads and somebody else could write to: the clones are nobody's but ours."""
    read = [path for layers in imagechain.served(kept.shown).values() for path in imagechain.paths(layers)]
    return [path for path in kept.shared if path in read]


async def why_lost(record: Record) -> str | None:
    """See Source.  After a restart of the host the clones are activated first."""
    kept = state.of(record)
    try:
        kept = await clones.activated(kept)
    except StateError as error:
        return error.message
    if why := await clones.why_lost(kept):
        return why
    return await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)


async def release(kept: Kept) -> None:
    """What costs the guest is that its writes need new space: remove the clones, but for those of a checkpoint."""
    log.info("removing the clones of %s", kept.vm_name)
    await clones.remove(await marks.own(kept))


async def check_unused(_kept: Kept) -> None:
    """Who reads the clones is the snapshot's server alone, with its daemon."""


async def destroy(kept: Kept) -> None:
    """Remove the clones, but for those of a checkpoint, and the directory with the socket in it."""
    await clones.remove(await marks.own(kept))
    directory = state.of(kept).directory
    await blocking.on_path(directory, REMOVE_S, directories.remove, Path(directory), done="removed", kind=LeftoverError)
    await clones.remove(await marks.own(kept))  # those of a checkpoint that was discarded while the directory was there


def by_hand(kept: Kept) -> ByHand:
    """See Source."""
    told = state.of(kept)
    return ByHand(destroy=clones.by_hand(_own_now(kept)), paths=[told.directory])


def _own_now(kept: Kept) -> Sequence[Clone]:
    """All, if it cannot be told which a checkpoint keeps."""
    try:
        return marks.own_now(kept)
    except SnapmountError:
        return state.of(kept).clones
