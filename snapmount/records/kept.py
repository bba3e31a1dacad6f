"""What is known of a snapshot wherever it is written down, in its record and in the journal: enough to undo it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class HasSource(Protocol):
    """What keeps something for the source of a snapshot: its record, or an entry of the journal."""

    @property
    def source(self) -> Mapping[str, Any]:
        """{"kind": ..., ...}, which only that source reads."""


Check = Callable[[HasSource], object]  # raises ValueError if no source can read what is kept


@dataclass(frozen=True)
class Kept:
    """A snapshot, as far as undoing it needs."""

    id: str
    vm_name: str
    vm_uuid: str
    connect: str  # libvirt connection URI
    source: Mapping[str, Any]  # {"kind": ..., ...}, which only that source reads
