"""What the record of a snapshot keeps for the source `offline`, which alone reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core.document import from_document
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Layer
from ...core.user import User
from ...records.documents import HasSource
from ..sourcestate import SourceState

KIND = "offline"


@dataclass(frozen=True)
class Chain:
    """What a disk consists of."""

    disk: str
    layers: tuple[Layer, ...]

    @property
    def path(self) -> str | None:
        """Of a disk that is one raw image of this host: it is read without QEMU."""
        top = self.layers[0]
        is_plain = len(self.layers) == 1 and top.format == "raw" and isinstance(top.origin, str)
        return str(top.origin) if is_plain else None

    @property
    def is_locked(self) -> bool:
        """Whether QEMU's lock keeps others from writing to it: all of it is files of this host."""
        parts = [part for layer in self.layers for part in (layer, layer.data) if part]
        return all(isinstance(part.origin, str) and not part.is_device for part in parts)


@dataclass(frozen=True)
class OfflineState(SourceState):
    """Where the disks lie, and what their files were like at the snapshot's moment.

    In the record: {"kind": "offline", "directory", "chains", "fingerprints", "reader"}.
    """

    kind: ClassVar[str] = KIND

    directory: str  # the snapshot's, ours alone, for the socket
    chains: tuple[Chain, ...]  # of the disks, in their order
    fingerprints: tuple[Fingerprint, ...]
    reader: User  # QEMU's, as whom the daemon runs

    @property
    def socket(self) -> str:
        """Of the NBD server that exports the disks that are not one raw image."""
        return f"{self.directory}/nbd.sock"

    @property
    def served(self) -> dict[str, tuple[Layer, ...]]:
        """The disks that it exports."""
        return {chain.disk: chain.layers for chain in self.chains if chain.path is None}


def of(kept: HasSource) -> OfflineState:
    """What a record, or an entry of the journal, keeps for this source."""
    return from_document(OfflineState, kept.source, "source")
