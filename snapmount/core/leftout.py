"""What is not part of a snapshot, or of a scratch VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LeftOut:
    """A disk, or something else of the VM, that is not part of the snapshot, and why."""

    name: str
    why: str
