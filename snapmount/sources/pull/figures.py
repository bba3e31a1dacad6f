"""What the server of a snapshot has measured of its scratch space, kept beside the record for `list` and `show`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ...errors import StateError
from ...records import documents

CURRENT_S = 5.0  # figures that are older are of the past


@dataclass(frozen=True)
class Figures:
    """What the server of a snapshot has measured."""

    at_s: float  # time.monotonic(), which all processes of a host share, and which no one steps
    used_bytes: int
    bytes_per_s: float
    left_s: float | None

    def write(self, directory: Path) -> None:
        """Keep them in the snapshot's runtime directory.  Raises OSError."""
        documents.write(directory / "space.json", self)

    @classmethod
    def load(cls, directory: Path) -> Figures | None:
        """Those of now; None if there are none."""
        try:
            found = documents.read(directory / "space.json", cls)
        except StateError:
            return None
        return found if found and 0 <= time.monotonic() - found.at_s <= CURRENT_S else None
