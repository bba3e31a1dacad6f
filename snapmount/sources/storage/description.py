"""What `list`, `show` and JSON tell of a snapshot that was taken by storage."""

from __future__ import annotations

from pathlib import Path

from ...core import imagechain
from ...core.description import Description, told_pause
from ...records.record import Record
from . import state


def describe(record: Record, _directory: Path, _is_active: bool) -> Description:
    """Its clones, and how long the VM was paused for them."""
    kept = state.of(record)
    clones = [(clone, origin) for clone in kept.clones for origin in clone.origins]
    pause = "not taken yet" if kept.pause_s is None else told_pause(kept.pause_s)
    facts = [("source", f"storage: {pause}")]
    facts += [(f"{clone.driver} clone", f"{kept.frozen.get(origin, '-')}, of {origin}") for clone, origin in clones]
    facts += [("shared image", path) for path in kept.shared]
    return Description(
        nbd_uris={name: f"nbd+unix:///{name}?socket={kept.socket}" for name in imagechain.served(kept.shown)},
        unwatched="nobody watches the space that the guest's writes take",
        pause_s=kept.pause_s,
        facts=facts,
    )
