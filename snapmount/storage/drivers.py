"""The drivers there are: nothing else knows one by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import reflink
from .driver import Driver

# In the order in which a disk is offered to them.
DRIVERS: Mapping[str, Driver] = {
    "reflink": reflink,
}
