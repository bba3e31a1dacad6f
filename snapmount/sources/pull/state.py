"""What the record of a snapshot keeps for the source `pull`, which alone reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...records.documents import HasSource
from .space import DEFAULT_TERMS, Terms

KIND = "pull"


@dataclass(frozen=True)
class PullState:
    """What libvirt's backup job needs, and what is made for it."""

    socket: str  # of QEMU's NBD server: the proof that a backup job is ours
    scratch: str  # directory of the scratch files, ours alone
    terms: Terms = DEFAULT_TERMS  # how it uses scratch space

    def document(self) -> dict[str, Any]:
        """Its shape in the record: {"kind": "pull", "socket", "scratch", "terms"}."""
        return {"kind": KIND, "socket": self.socket, "scratch": self.scratch, "terms": self.terms.to_json()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> PullState:
        """Raises KeyError, TypeError or ValueError for another shape."""
        if document["kind"] != KIND:
            raise ValueError(f"its source is {document['kind']!r}, not {KIND!r}")
        return cls(document["socket"], document["scratch"], Terms.from_json(document["terms"]))

    @property
    def directory(self) -> Path:
        """The scratch directory."""
        return Path(self.scratch)

    def export_uri(self, disk: str) -> str:
        """The NBD URI of a disk's export (NBD URI specification, "nbd+unix")."""
        return f"nbd+unix:///{disk}?socket={self.socket}"


def of(kept: HasSource) -> PullState:
    """What a record, or an entry of the journal, keeps for this source."""
    return PullState.from_document(kept.source)
