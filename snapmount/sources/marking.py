"""What all sources that make checkpoints decide alike: which disks are part of one, and which count as changed as a
whole since an older one, as far as that is known before anything is made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.checkpoint import Checkpoint, MarkedDisk, Since
from ..core.snapshot import Disk
from ..records.record import Record
from .source import Subject


def marked(subject: Subject, unmarked: Mapping[str, str]) -> tuple[str, ...]:
    """The disks that will be part of the checkpoint that is asked for; if none can be, that is warned of."""
    if subject.checkpoint is None:
        return ()
    found = tuple(disk.name for disk in subject.selection.chosen if disk.name not in unmarked)
    if not found:
        subject.warn(f"no checkpoint is made: {'; '.join(f'{name}: {why}' for name, why in unmarked.items())}")
    return found


def planned(
    disks: Sequence[Disk], unmarked: Mapping[str, str], since: Since | None, kinds: Collection[str]
) -> tuple[Disk, ...]:
    """The disks, with the reason for each that counts as changed as a whole, as far as it is known by now; checkpoints
    made by sources of these kinds can be compared with.
    """
    if since is None:
        return tuple(disks)
    return tuple(replace(disk, full=_why_full(disk, unmarked, since, kinds)) for disk in disks)


def _why_full(disk: Disk, unmarked: Mapping[str, str], since: Since, kinds: Collection[str]) -> str | None:
    if disk.name in unmarked:
        return unmarked[disk.name]
    if since.checkpoint is None:
        return since.why_full
    kind = since.checkpoint.source["kind"]
    if kind not in kinds:
        return f"checkpoint {since.name} was made by --source {kind}"
    at_checkpoint = since.checkpoint.disk(disk.name)
    if at_checkpoint is None:
        return f"it is not part of checkpoint {since.name}"
    if at_checkpoint.origin != disk.origin:
        return f"its image was {at_checkpoint.origin} at checkpoint {since.name}"
    return None


def checkpoint(record: Record, marked: Collection[str], source: Mapping[str, Any]) -> Checkpoint | None:
    """The one that is made with a snapshot, and what its source must know of it; None if none is made."""
    snapshot = record.snapshot
    if snapshot.checkpoint is None:
        return None
    return Checkpoint(
        name=snapshot.checkpoint,
        vm_name=snapshot.vm_name,
        vm_uuid=snapshot.vm_uuid,
        connect=record.connect,
        snapshot=snapshot.id,
        created=snapshot.created,
        disks=tuple(
            MarkedDisk(disk.name, disk.origin, disk.size_bytes) for disk in snapshot.disks if disk.name in marked
        ),
        source=source,
    )
