"""Checkpoints of a running VM: bitmaps in its qcow2 images, in which QEMU notes what the guest has changed since.

https://libvirt.org/kbase/internals/incremental-backup.html ; QEMU: docs/interop/bitmaps.rst.  libvirt is told of a
checkpoint only while it must know of it, see hypervisor/checkpoints.py.  A bitmap is stored when QEMU ends in an
orderly way: after a crash it is broken, and the disk counts as changed as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from ...core import checkpointxml
from ...core.checkpoint import Checkpoint, MarkedDisk, Since
from ...core.diskdefinition import DiskDefinition
from ...core.document import from_document, to_document
from ...core.snapshot import Disk
from ...errors import StateError, UnreachableError
from ...hypervisor import Domain, connected
from ...images import qcow2
from ...records import checkpoints
from ...records.record import Record
from ...records.store import Lease
from . import state
from .state import Increment, PullCheckpoint

log = logging.getLogger(__name__)


async def why_unmarked(disk: DiskDefinition) -> str | None:
    """Why a disk can have no bitmap; None if it can, as far as this host sees."""
    if disk.format != "qcow2":
        return f"a {disk.format} image holds no bitmap of changes"
    if disk.is_readonly:
        return "it is read-only, and its image can be given no bitmap of changes"
    if disk.kind in ("file", "block") and await qcow2.version(str(disk.origin)) == 2:
        return "its image is qcow2 of version 2, which holds no bitmap of changes"
    return None


def planned(disks: Sequence[Disk], unmarked: Mapping[str, str], since: Since | None) -> tuple[Disk, ...]:
    """The disks, with the reason for each that counts as changed as a whole, as far as it is known before libvirt has
    looked at their bitmaps.  `unmarked` are those that can have none, and why.
    """
    if since is None:
        return tuple(disks)
    return tuple(replace(disk, full=_why_full(disk, unmarked, since)) for disk in disks)


def _why_full(disk: Disk, unmarked: Mapping[str, str], since: Since) -> str | None:
    if disk.name in unmarked:
        return unmarked[disk.name]
    if since.checkpoint is None:
        return since.why_full
    if since.checkpoint.source["kind"] != state.KIND:
        return f"checkpoint {since.name} was made by --source {since.checkpoint.source['kind']}"
    marked = since.checkpoint.disk(disk.name)
    if marked is None:
        return f"it is not part of checkpoint {since.name}"
    if marked.origin != disk.origin:
        return f"its image was {marked.origin} at checkpoint {since.name}"
    return None


@asynccontextmanager
async def known(domain: Domain, lease: Lease, since: Since | None) -> AsyncIterator[None]:
    """While the block lasts, libvirt knows of the checkpoint as far as its bitmaps are whole, for a job that is to
    begin.  The record tells for which disks that is, and of each other disk why it is full.  Raises UnreachableError.
    """
    wanted = [disk.name for disk in lease.record.snapshot.disks if disk.full is None]
    if since is None or since.checkpoint is None or not wanted:
        yield
        return
    await domain.checkpoints.forget(since.name)  # a command that was killed may have left it, with other disks
    try:
        description = checkpointxml.only(_description(since.checkpoint), wanted)
        broken = await domain.checkpoints.describe(description)
        _note(lease, since.checkpoint, broken, [disk for disk in wanted if disk not in broken])
        yield
    finally:
        with trio.CancelScope(shield=True):
            await _forget(domain, since.name)


def _note(lease: Lease, since: Checkpoint, broken: Sequence[str], known: Sequence[str]) -> None:
    """Write down which disks' changes are known, and why others are full."""
    snapshot, kept = lease.record.snapshot, state.of(lease.record)
    why = f"its bitmap of checkpoint {since.name} is missing or broken"
    disks = tuple(replace(disk, full=why) if disk.name in broken else disk for disk in snapshot.disks)
    increments = tuple(Increment(each.name, each.size_bytes) for each in since.disks if each.name in known)
    source = to_document(replace(kept, increments=increments))
    lease.update(snapshot=replace(snapshot, disks=disks), source=source)


async def _forget(domain: Domain, name: str) -> None:
    """What is left in libvirt's memory is forgotten at the next time: no reason to fail."""
    try:
        await domain.checkpoints.forget(name)
    except UnreachableError as error:
        log.warning("libvirt still lists checkpoint %s: %s", name, error.message)


def definition(record: Record) -> str | None:
    """The XML of the checkpoint to be made, whose record is written now; None if none is to be.  Raises SpaceError."""
    snapshot, marked = record.snapshot, state.of(record).marked
    if snapshot.checkpoint is None:
        return None
    checkpoints.write(
        Checkpoint(
            name=snapshot.checkpoint,
            vm_name=snapshot.vm_name,
            vm_uuid=snapshot.vm_uuid,
            connect=record.connect,
            snapshot=snapshot.id,
            created=snapshot.created,
            disks=tuple(
                MarkedDisk(disk.name, disk.origin, disk.size_bytes) for disk in snapshot.disks if disk.name in marked
            ),
            source=to_document(PullCheckpoint()),
        )
    )
    unmarked = [disk.name for disk in snapshot.disks if disk.name not in marked]
    others = unmarked + [each.name for each in snapshot.left_out]
    return checkpointxml.definition(snapshot.checkpoint, f"snapmount: snapshot {snapshot.id}", marked, others)


async def made(domain: Domain, record: Record) -> None:
    """The checkpoint is there: keep libvirt's description, with which it can be told of it again.  Raises
    UnreachableError, SpaceError.
    """
    snapshot = record.snapshot
    if snapshot.checkpoint is None:
        return
    description = await domain.checkpoints.description(snapshot.checkpoint)
    checkpoint = checkpoints.load(snapshot.vm_uuid, snapshot.checkpoint)
    if description is None or checkpoint is None:
        raise StateError(f"{domain.name}: checkpoint {snapshot.checkpoint} has gone as soon as it was made")
    checkpoints.write(replace(checkpoint, source=to_document(PullCheckpoint(description))))
    await domain.checkpoints.forget(snapshot.checkpoint)


async def discard(checkpoint: Checkpoint) -> None:
    """See Source.  QEMU removes the bitmaps of a VM that runs; in the images of one that is shut off we do."""
    async with connected(checkpoint.connect) as hypervisor:
        domain = await hypervisor.domain_by_uuid(checkpoint.vm_uuid)
        if domain is None:
            return  # its images are nobody's that we know
        if await domain.is_active():
            description = _description(checkpoint) or await domain.checkpoints.description(checkpoint.name)
            if description:
                await domain.checkpoints.delete(checkpoint.name, description)
            return
        await domain.checkpoints.forget(checkpoint.name)
        for disk in checkpoint.disks:
            if disk.origin.startswith("/"):
                await qcow2.remove_bitmap(disk.origin, checkpoint.name)


def _description(checkpoint: Checkpoint) -> str:
    return from_document(PullCheckpoint, checkpoint.source, "source").description
