"""What the record of a snapshot keeps for the source `pull`, which alone reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...core.checkpoint import Increment
from ...core.document import from_document
from ...records.kept import HasSource
from ..sourcestate import SourceState
from .space import DEFAULT_POLICY, ScratchPolicy

KIND = "pull"


@dataclass(frozen=True)
class PullState(SourceState):
    """What libvirt's backup job needs, and what is made for it.

    In the record: {"kind": "pull", "socket", "scratch", "policy", "marked", "increments"}.
    """

    kind: ClassVar[str] = KIND

    socket: str  # of QEMU's NBD server: the proof that a backup job is ours
    scratch: str  # directory of the scratch files, ours alone
    policy: ScratchPolicy = DEFAULT_POLICY  # how it uses scratch space
    marked: tuple[str, ...] = ()  # the disks that are part of the checkpoint that is made with it
    increments: tuple[Increment, ...] = ()  # the disks whose exports tell what has changed

    @property
    def directory(self) -> Path:
        """The scratch directory."""
        return Path(self.scratch)

    def export_uri(self, disk: str) -> str:
        """The NBD URI of a disk's export (NBD URI specification, "nbd+unix")."""
        return f"nbd+unix:///{disk}?socket={self.socket}"


def of(kept: HasSource) -> PullState:
    """What a record, or an entry of the journal, keeps for this source."""
    return from_document(PullState, kept.source, "source")
