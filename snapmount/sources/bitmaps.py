"""Checkpoints as bitmaps in qcow2 images, in which QEMU notes what has been changed since: what the sources for running
VMs and for those that are shut off have in common.

QEMU stores bitmaps when it ends in an orderly way (docs/interop/bitmaps.rst, docs/interop/qcow2.txt, "Bitmaps
extension"); after a crash they are broken, and a disk counts as changed as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ..core import checkpointxml
from ..core.checkpoint import Checkpoint, Increment, Since
from ..core.diskdefinition import DiskDefinition
from ..core.snapshot import Disk, Snapshot
from ..hypervisor import connected
from ..images import qcow2
from ..images.bitmap import Bitmap
from ..records.record import Record
from . import marking
from .source import Subject

OLDEST_LIBVIRT = (6, 10, 0)  # since when VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE is there
CHECKPOINTS_COST = False  # a bitmap takes no space of the guest's but its own
KINDS = frozenset({"pull", "offline"})  # of the sources whose checkpoints are bitmaps


async def why_unmarked(disk: DiskDefinition) -> str | None:
    """Why a disk can have no bitmap; None if it can, as far as this host sees."""
    if disk.format != "qcow2":
        return f"a {disk.format} image holds no bitmap of changes"
    if disk.is_readonly:
        return "it is read-only, and its image can be given no bitmap of changes"
    if disk.kind in ("file", "block") and await qcow2.version(str(disk.origin)) == 2:
        return "its image is qcow2 of version 2, which holds no bitmap of changes"
    return None


async def unmarked(subject: Subject) -> dict[str, str]:
    """The disks that can have no bitmap, and why; looked for only if a bitmap matters."""
    if not (subject.checkpoint or subject.since):
        return {}
    version = await subject.connection.version()  # the daemon's, which is what has to know the flag
    if tuple(map(int, version.split("."))) < OLDEST_LIBVIRT:
        why = f"libvirt {version} is too old for checkpoints; 6.10.0 is not"
        return {disk.name: why for disk in subject.selection.chosen}
    reasons = [(disk.name, await why_unmarked(disk)) for disk in subject.selection.chosen]
    return {name: why for name, why in reasons if why}


def judged(disks: Sequence[Disk], broken: Collection[str], since: Since) -> tuple[Disk, ...]:
    """The disks, now that it is known whose bitmaps are missing or broken."""
    why = f"its bitmap of checkpoint {since.name} is missing or broken"
    return tuple(replace(disk, full=disk.full or why) if disk.name in broken else disk for disk in disks)


async def at_rest(disks: Sequence[Disk], since: Since | None) -> tuple[Disk, ...]:
    """The disks of a VM that is shut off, once the bitmaps in their images have been looked at."""
    if since is None or since.checkpoint is None:
        return tuple(disks)
    known = [disk for disk in disks if disk.full is None]
    whole = [disk.name for disk in known if await qcow2.has_whole_bitmap(disk.origin, since.name)]
    return judged(disks, [disk.name for disk in known if disk.name not in whole], since)


def increments(disks: Sequence[Disk], since: Since | None) -> tuple[Increment, ...]:
    """Of the disks that are not full."""
    if since is None or since.checkpoint is None:
        return ()
    known = [since.checkpoint.disk(disk.name) for disk in disks if disk.full is None]
    return tuple(Increment(each.name, each.size_bytes) for each in known if each)


def exported(increment: Increment, name: str) -> Bitmap:
    """What the export of a disk tells of its changes, in which QEMU calls the bitmap by that name."""
    return Bitmap(f"qemu:dirty-bitmap:{name}", increment.size_bytes)


def checkpoint(record: Record, marked: Collection[str], description: str = "") -> Checkpoint | None:
    """The one that is made with a snapshot; None if none is."""
    return marking.checkpoint(record, marked, {"kind": record.snapshot.source, "description": description})


def definition(checkpoint: Checkpoint, snapshot: Snapshot) -> str:
    """libvirt's XML of a checkpoint to be made."""
    marked = [disk.name for disk in checkpoint.disks]
    unmarked = [disk.name for disk in snapshot.disks if disk.name not in marked]
    others = unmarked + [each.name for each in snapshot.left_out]
    return checkpointxml.definition(checkpoint.name, f"snapmount: snapshot {snapshot.id}", marked, others)


def description(checkpoint: Checkpoint) -> str:
    """libvirt's XML of it, with which it can be told of it again; '' if it was never made."""
    return str(checkpoint.source.get("description", ""))


async def discard(checkpoint: Checkpoint) -> None:
    """See Source.  QEMU removes the bitmaps of a VM that runs; in the images of one that is shut off we do."""
    async with connected(checkpoint.connect) as hypervisor:
        domain = await hypervisor.domain_by_uuid(checkpoint.vm_uuid)
        if domain is None:
            return  # its images are nobody's that we know
        if await domain.is_active():
            told = description(checkpoint) or await domain.checkpoints.description(checkpoint.name)
            if told:
                await domain.checkpoints.delete(checkpoint.name, told)
            return
        await domain.checkpoints.forget(checkpoint.name)
        for disk in checkpoint.disks:
            if disk.origin.startswith("/"):
                await qcow2.remove_bitmap(disk.origin, checkpoint.name)


async def keep(_current: object, _discard: object) -> None:
    """Nothing is to be watched."""
