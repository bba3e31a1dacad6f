"""What a checkpoint by storage is: clones that are kept, with which later ones are compared.

From the moment that the checkpoint's record names them, which is before they are made, its clones stay when the
snapshot ends, for as long as that record is there.  While the snapshot's directory is there, the snapshot needs them
too: then a checkpoint that is discarded gives them back to it, else it removes them itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from ...core.checkpoint import Checkpoint
from ...core.document import from_document, to_document
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Chain
from ...errors import StateError
from ...records import checkpoints
from ...records.kept import Kept
from ...records.record import Record
from ...storage import shapes
from ...storage.driver import Clone
from .. import marking
from ..sourcestate import SourceState
from . import clones, state
from .state import KIND

T = TypeVar("T")

DISK_S = 30.0


@dataclass(frozen=True)
class StorageMarks(SourceState):
    """What the record of a checkpoint keeps for this source.

    In the record: {"kind": "storage", "directory", "clones", "chains", "fingerprints"}.
    """

    kind: ClassVar[str] = KIND

    directory: str  # the snapshot's
    clones: tuple[Clone, ...]
    chains: tuple[Chain, ...]  # of its disks
    fingerprints: tuple[Fingerprint, ...]  # of the images that those rest on

    def __post_init__(self) -> None:
        """Raises ValueError for clones that no driver could have made."""
        for clone in self.clones:
            shapes.check(clone)

    def of(self, origin: str) -> Clone | None:
        """The clone of that origin."""
        return next((clone for clone in self.clones if origin in clone.origins), None)


NOTHING = StorageMarks("", (), (), ())


def of(checkpoint: Checkpoint) -> StorageMarks:
    """Raises StateError for a record that this source cannot have written."""
    try:
        return from_document(StorageMarks, checkpoint.source, "source")
    except ValueError as error:
        raise StateError(f"the record of checkpoint {checkpoint.name} cannot be read: {error}") from error


async def write(record: Record) -> None:
    """Write the record of the checkpoint that is made with the snapshot, if one is: its clones belong to it from now
    on.  Raises SpaceError.
    """
    checkpoint = _checkpoint(record)
    if checkpoint:
        await checkpoints.keep(checkpoint)


def _checkpoint(record: Record) -> Checkpoint | None:
    kept = state.of(record)
    marked = [disk.name for disk in record.snapshot.disks if disk.name in kept.marked]
    chains = tuple(chain for chain in kept.chains if chain.disk in marked)
    written = {str(part.origin) for chain in chains for part in (chain.layers[0], chain.layers[0].data) if part}
    below = {path for chain in chains for layer in chain.layers[1:] for path in layer.paths}
    told = StorageMarks(
        kept.directory,
        tuple(clone for clone in kept.clones if written & set(clone.origins)),
        chains,
        tuple(each for each in kept.fingerprints if each.path in below),
    )
    return marking.checkpoint(record, marked, to_document(told))


async def own(kept: Kept) -> Sequence[Clone]:
    """The clones of a snapshot that no checkpoint keeps.  Raises StateError, LeftoverError."""
    return await checkpoints.on_disk(own_now, kept)


def own_now(kept: Kept) -> Sequence[Clone]:
    """The same.  Blocks."""
    told = state.of(kept)
    checkpoint = checkpoints.load(kept.vm_uuid, told.checkpoint) if told.checkpoint else None
    if checkpoint is None or checkpoint.snapshot != kept.id:
        return told.clones
    others = {clone.origins for clone in of(checkpoint).clones}
    return [clone for clone in told.clones if clone.origins not in others]


async def discard(checkpoint: Checkpoint) -> None:
    """See Source."""
    told = of(checkpoint)
    if await checkpoints.on_disk(os.path.lexists, told.directory):
        given_back = replace(checkpoint, counts=False, source=to_document(replace(told, clones=())))
        await checkpoints.keep(given_back)
        if await checkpoints.on_disk(os.path.lexists, told.directory):  # else the snapshot has just ended without them
            return
    await clones.remove(told.clones)
