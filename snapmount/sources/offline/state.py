"""What the record of a snapshot keeps for the source `offline`, which alone reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core import imagechain
from ...core.checkpoint import Increment
from ...core.document import from_document
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Chain, Layer
from ...core.user import User
from ...records.kept import HasSource
from ..sourcestate import SourceState

KIND = "offline"


@dataclass(frozen=True)
class OfflineState(SourceState):
    """Where the disks lie, and what their files were like at the snapshot's moment.

    In the record: {"kind": "offline", "directory", "chains", "fingerprints", "reader", "marked", "since",
    "increments"}.
    """

    kind: ClassVar[str] = KIND

    directory: str  # the snapshot's, ours alone, for the socket
    chains: tuple[Chain, ...]  # of the disks, in their order
    fingerprints: tuple[Fingerprint, ...]
    reader: User  # QEMU's, as whom the daemon runs
    marked: tuple[str, ...] = ()  # the disks that are part of the checkpoint that is made with it
    since: str | None = None  # the checkpoint of the increments
    increments: tuple[Increment, ...] = ()  # the disks whose changes are known

    @property
    def socket(self) -> str:
        """Of the NBD server that exports the disks that are not one raw image."""
        return f"{self.directory}/nbd.sock"

    @property
    def served(self) -> dict[str, tuple[Layer, ...]]:
        """The disks that it exports."""
        return imagechain.served(self.chains)


def of(kept: HasSource) -> OfflineState:
    """What a record, or an entry of the journal, keeps for this source."""
    return from_document(OfflineState, kept.source, "source")
