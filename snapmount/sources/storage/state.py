"""What the record of a snapshot keeps for the source `storage`, which alone reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...core import imagechain
from ...core.document import from_document
from ...core.fingerprint import Fingerprint
from ...core.imagechain import Chain, Layer
from ...core.user import User
from ...records.kept import HasSource
from ...storage import shapes
from ...storage.driver import Clone, is_url
from ..sourcestate import SourceState

KIND = "storage"


@dataclass(frozen=True)
class StorageState(SourceState):
    """The clones, and how the disks are made of them.

    In the record: {"kind": "storage", "directory", "clones", "chains", "fingerprints", "reader", "run_id",
    "max_pause_s", "needs_pause", "pause_s", "checkpoint", "marked"}.
    """

    kind: ClassVar[str] = KIND

    directory: str  # the snapshot's, ours alone, for the socket
    clones: tuple[Clone, ...]
    chains: tuple[Chain, ...]  # of the disks, in their order, as the VM has them
    fingerprints: tuple[Fingerprint, ...]  # of the images that are not cloned, since nobody writes to them
    reader: User  # QEMU's, as whom the daemon runs
    run_id: int  # libvirt's id of the VM's run; -1 if it was shut off
    max_pause_s: float  # how long it may be paused
    needs_pause: bool = True  # while it runs
    pause_s: float | None = None  # how long it was; None before
    checkpoint: str | None = None  # the one that is made with it, whose record tells which clones it keeps
    marked: tuple[str, ...] = ()  # the disks that are part of that

    def __post_init__(self) -> None:
        """Raises ValueError for clones that no driver could have made."""
        for clone in self.clones:
            shapes.check(clone)

    @property
    def socket(self) -> str:
        """Of the NBD server that exports the disks that are not one raw image."""
        return f"{self.directory}/nbd.sock"

    @property
    def frozen(self) -> Mapping[str, str]:
        """What was cloned, and where its clone is found."""
        return {origin: clone.of(origin) for clone in self.clones if clone.frozen for origin in clone.origins}

    @property
    def shown(self) -> tuple[Chain, ...]:
        """What the disks of the snapshot consist of: the clones, and what those rest on; those with a URL left out."""
        found = [
            replace(chain, layers=(self._frozen(chain.layers[0]), *chain.layers[1:]))
            for chain in self.chains
            if chain.disk not in self.urls
        ]
        return tuple(found)

    @property
    def urls(self) -> Mapping[str, str]:
        """The disks whose snapshots this host cannot read, with the URLs that describe them."""
        tops = {chain.disk: self.frozen.get(str(chain.layers[0].origin)) for chain in self.chains}
        return {disk: frozen for disk, frozen in tops.items() if frozen and is_url(frozen)}

    def _frozen(self, layer: Layer) -> Layer:
        data = layer.data and self._frozen(layer.data)
        return replace(layer, origin=self.frozen.get(str(layer.origin), layer.origin), data=data)

    @property
    def shared(self) -> tuple[str, ...]:
        """The files and block devices of this host that the snapshot has in common with the VM."""
        cloned = {origin for clone in self.clones for origin in clone.origins}
        found = [path for chain in self.chains for path in imagechain.paths(chain.layers) if path not in cloned]
        return tuple(dict.fromkeys(found))


def of(kept: HasSource) -> StorageState:
    """What a record, or an entry of the journal, keeps for this source."""
    return from_document(StorageState, kept.source, "source")
