"""Checkpoints: moments of a VM since which it is known what its disks have changed.

A checkpoint is made together with a snapshot, at the same moment.  It counts once that snapshot has ended well: what
has read a snapshot that was lost must be able to fall back on the checkpoint before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .document import Reshaped

LAST = "last"  # in the place of a name: the newest one that counts
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,63}")  # is a file name, and a bitmap's in QEMU
VERSION = 1


def is_name(text: str) -> bool:
    """Whether a checkpoint can be called so."""
    return bool(NAME_PATTERN.fullmatch(text)) and text != LAST


def default_name(snapshot_id: str) -> str:
    """What a checkpoint is called for which no name is given."""
    return f"snapmount-{snapshot_id}"


@dataclass(frozen=True)
class MarkedDisk(Reshaped):
    """A disk whose changes are known from the checkpoint on."""

    ignores_unknown_keys = True

    name: str
    origin: str
    size_bytes: int  # then: what it has grown by has changed


@dataclass(frozen=True)
class Checkpoint(Reshaped):
    """A checkpoint of a VM, as its record tells of it."""

    ignores_unknown_keys = True

    name: str
    vm_name: str
    vm_uuid: str
    connect: str  # libvirt connection URI
    snapshot: str  # id of the one that it was made with
    created: datetime  # UTC
    disks: tuple[MarkedDisk, ...]
    source: Mapping[str, Any]  # {"kind": ..., ...}: what the source that made it must know, and only that reads
    counts: bool = False  # whether its snapshot has ended well

    def disk(self, name: str) -> MarkedDisk | None:
        """The disk of that name; None if its changes are not known."""
        return next((disk for disk in self.disks if disk.name == name), None)

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        """The shape of its record."""
        return {"version": VERSION, **written}

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        if document.pop("version") != VERSION:
            raise ValueError("it was written by another version of snapmount, which this one does not know")
        return document


@dataclass(frozen=True)
class Increment:
    """A disk of a snapshot whose changes since a checkpoint are known."""

    disk: str
    size_bytes: int  # at the checkpoint; what it has grown by has changed


@dataclass(frozen=True)
class Since:
    """The checkpoint from which on changes are asked for."""

    name: str  # as it was asked for, but for LAST if there is one
    checkpoint: Checkpoint | None
    why_full: str = ""  # if there is none: why all counts as changed


def since(asked: str, checkpoints: Sequence[Checkpoint]) -> Since:
    """The checkpoint that is meant by a name or LAST, of all of the VM, oldest first."""
    counting = [each for each in checkpoints if each.counts]
    if asked == LAST:
        return Since(counting[-1].name, counting[-1]) if counting else Since(LAST, None, "there is no checkpoint yet")
    found = next((each for each in checkpoints if each.name == asked), None)
    if found is None:
        return Since(asked, None, f"there is no checkpoint {asked} any more, or never was")
    if not found.counts:
        return Since(asked, None, f"the snapshot of checkpoint {asked}, {found.snapshot}, has not ended well")
    return Since(asked, found)
