"""What is known of a snapshot wherever it is written down, in its record and in the journal: enough to undo it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kept:
    """A snapshot, as far as undoing it needs."""

    id: str
    vm_name: str
    vm_uuid: str
    connect: str  # libvirt connection URI
    source: Mapping[str, Any]  # {"kind": ..., ...}, which only that source reads
