"""The drivers there are: nothing else knows one by name."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import NotFoundError
from . import btrfs, lvm, reflink
from .driver import Driver
from .hook import HookDriver

# In the order in which a disk is offered to them.
DRIVERS: Mapping[str, Driver] = {
    "hook": HookDriver(),
    "btrfs": btrfs,
    "reflink": reflink,
    "lvm": lvm,
}


def of(word: str) -> Driver:
    """The driver of that name, or that of the hook at that path.  Raises NotFoundError."""
    if word.startswith("/"):
        return HookDriver(word)
    if word not in DRIVERS:
        known = ", ".join(DRIVERS)
        raise NotFoundError(f"there is no storage driver {word!r}; there are {known}, and hooks, by their paths")
    return DRIVERS[word]
