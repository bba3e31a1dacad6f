"""What a source tells of a snapshot of its own, for `list`, `show` and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import units


@dataclass(frozen=True)
class Growth:
    """How fast the space goes that a snapshot uses."""

    bytes_per_s: float
    left_s: float | None  # how long it lasts at that rate


@dataclass(frozen=True)
class Description:
    """What a snapshot costs, and where its disks can be read past the mount."""

    used_bytes: int | None = None  # of space that the snapshot alone takes; None if that cannot be told
    growth: Growth | None = None  # as far as it has been measured just now
    nbd_uris: Mapping[str, str] = field(default_factory=dict)  # by disk (NBD URI specification)
    scratch: Mapping[str, Any] | None = None  # the value of "scratch" in JSON, see the man page
    hold: str | None = None  # what cannot be done with the VM meanwhile, in words that follow a colon
    unwatched: str | None = None  # what a guest suffers if neither server nor standby are there, in such words
    pause_s: float | None = None  # how long the VM was paused for it; None if its source pauses none
    facts: Sequence[tuple[str, str]] = ()  # for `show`: what, and its value in words


def told_pause(pause_s: float) -> str:
    """For how long the VM was paused, in words."""
    return f"the VM was paused for {units.moment(pause_s)}" if pause_s else "the VM was not paused"
