"""What `list`, `show` and JSON tell of a snapshot of a VM that is shut off."""

from __future__ import annotations

from pathlib import Path

from ...core import imagechain
from ...core.description import Description
from ...records.record import Record
from . import state


def describe(record: Record, _directory: Path, _is_active: bool) -> Description:
    """Its images, which are read where they lie; it takes no space."""
    kept = state.of(record)
    vm = record.snapshot.vm_name
    hold = f"{vm} cannot be started until the snapshot is deleted"
    is_locked = all(chain.is_locked for chain in kept.chains)
    facts = [("source", "offline: the images of a VM that is shut off")]
    facts += [("images", path) for chain in kept.chains for path in imagechain.paths(chain.layers)]
    facts += [("", hold if is_locked else f"if {vm} is started, the snapshot is lost")]
    return Description(
        used_bytes=0,
        nbd_uris={name: f"nbd+unix:///{name}?socket={kept.socket}" for name in kept.served},
        hold=hold if is_locked else None,
        facts=facts,
    )
