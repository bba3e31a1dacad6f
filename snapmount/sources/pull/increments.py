"""Checkpoints of a running VM, whose QEMU has their bitmaps: what libvirt is told of them for a backup job.

libvirt knows of a checkpoint only while it must, see hypervisor/checkpoints.py.
https://libvirt.org/kbase/internals/incremental-backup.html
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from ...core import checkpointxml
from ...core.checkpoint import Since
from ...core.document import to_document
from ...errors import StateError, UnreachableError
from ...hypervisor import Domain
from ...records import checkpoints
from ...records.record import Record
from ...records.store import Lease
from .. import bitmaps
from . import state

log = logging.getLogger(__name__)


@asynccontextmanager
async def known(domain: Domain, lease: Lease, since: Since | None) -> AsyncIterator[None]:
    """While the block lasts, libvirt knows of the checkpoint as far as its bitmaps are whole, for a job that is to
    begin.  The record tells for which disks that is, and of each other disk why it is full.  Raises UnreachableError.
    """
    snapshot = lease.record.snapshot
    wanted = [disk.name for disk in snapshot.disks if disk.full is None]
    if since is None or since.checkpoint is None or not wanted:
        yield
        return
    await domain.checkpoints.forget(since.name)  # a command that was killed may have left it, with other disks
    try:
        description = checkpointxml.only(bitmaps.description(since.checkpoint), wanted)
        broken = await domain.checkpoints.describe(description)
        disks = bitmaps.judged(snapshot.disks, broken, since)
        kept = replace(state.of(lease.record), increments=bitmaps.increments(disks, since))
        lease.update(snapshot=replace(snapshot, disks=disks), source=to_document(kept))
        yield
    finally:
        with trio.CancelScope(shield=True):
            await _forget(domain, since.name)


async def _forget(domain: Domain, name: str) -> None:
    """What libvirt still knows is forgotten at the next time: no reason to fail."""
    try:
        await domain.checkpoints.forget(name)
    except UnreachableError as error:
        log.warning("libvirt still lists checkpoint %s: %s", name, error.message)


async def definition(record: Record) -> str | None:
    """The XML of the checkpoint to be made, whose record is written now; None if none is to be.  Raises SpaceError."""
    checkpoint = bitmaps.checkpoint(record, state.of(record).marked)
    if checkpoint is None:
        return None
    await checkpoints.keep(checkpoint)
    return bitmaps.definition(checkpoint, record.snapshot)


async def made(domain: Domain, record: Record) -> None:
    """The checkpoint is there: keep libvirt's description, with which it can be told of it again.

    Raises StateError, UnreachableError, SpaceError.
    """
    name, marked = record.snapshot.checkpoint, state.of(record).marked
    if name is None:
        return
    description = await domain.checkpoints.description(name)
    checkpoint = bitmaps.checkpoint(record, marked, description or "")
    if description is None or checkpoint is None:
        raise StateError(f"{domain.name}: checkpoint {name} has gone as soon as it was made")
    await checkpoints.keep(checkpoint)
    await domain.checkpoints.forget(name)
