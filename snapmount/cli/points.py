"""How checkpoints are shown: as a JSON document and as text.  Returns what to print; prints nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core import names
from ..core.checkpoint import Checkpoint
from ..core.document import format_time, to_document
from .tables import table

if TYPE_CHECKING:
    from ..lifecycle.checkpoints import Vm


UNWATCHED = "warning: nobody watches the space that these checkpoints take; `snapmount recover` sees to it"


def document(
    vm: Vm, left: Sequence[Checkpoint], deleted: Sequence[Checkpoint], *, is_unwatched: bool
) -> dict[str, Any]:
    """The JSON shape of what `checkpoints` prints; see JSON in the man page."""
    return {
        "vm": {"name": vm.name, "uuid": vm.uuid},
        "checkpoints": [_shown(each) for each in left],
        "deleted": [each.name for each in deleted],
        "unwatched": is_unwatched,
    }


def _shown(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "created": format_time(checkpoint.created),
        "source": checkpoint.source["kind"],
        "snapshot": checkpoint.snapshot,
        "counts": checkpoint.counts,
        "disks": [to_document(disk) for disk in checkpoint.disks],
    }


def text(vm: Vm, left: Sequence[Checkpoint], deleted: Sequence[Checkpoint]) -> str:
    """A line for each that was removed, or else a table."""
    if deleted:
        return "".join(f"{names.printable(vm.name)}: checkpoint {each.name} is removed\n" for each in deleted)
    if not left:
        return f"{names.printable(vm.name)} has no checkpoints\n" if sys.stdout.isatty() else ""
    rows = [
        (
            each.name,
            f"{each.created:%Y-%m-%d %H:%M:%S} UTC",
            ", ".join(disk.name for disk in each.disks),
            each.source["kind"],
            "counts" if each.counts else f"snapshot {each.snapshot} has not ended well yet",
        )
        for each in left
    ]
    return table(("NAME", "TAKEN", "DISKS", "SOURCE", "STATE"), rows)
