"""What a driver is: the protocol that each of them keeps, and the values it speaks in.

A driver clones image files and block devices of this host, while a VM that writes to them is paused, by means of what
they are stored on.  It knows nothing of VMs, disks' formats and records: a path goes in, a path of the same bytes,
which nobody writes to, comes out.  What a hook takes may also lie in a network, and have a URL in place of a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.extents import Extent
from ..core.user import User


def is_url(frozen: str) -> bool:
    """Whether it is a URL that describes a snapshot, whose bytes this host cannot read, and no path."""
    return not frozen.startswith("/")


@dataclass(frozen=True)
class Clone:
    """What a driver makes in one piece: frozen images of one or several origins.

    In the record: {"driver": ..., "origins": [...], "frozen": [...], "kept": {...}}.
    """

    driver: str  # the driver's name, see drivers.py
    origins: tuple[str, ...]  # absolute paths, symbolic links resolved; for hooks also network origins, as they print
    frozen: tuple[str, ...]  # where each is found once it has been activated; () if nothing but activate() can tell
    kept: Mapping[str, Any] = field(default_factory=dict)  # what this driver alone needs to find its clone: JSON

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.origins or len(self.frozen) not in (0, len(self.origins)):
            raise ValueError(f"a clone of {len(self.origins)} origins cannot have {len(self.frozen)} frozen images")

    def of(self, origin: str) -> str:
        """The frozen image of that origin: an absolute path, or a URL (see is_url())."""
        return self.frozen[self.origins.index(origin)]


@dataclass(frozen=True)
class Offer:
    """A clone that could be made, and what it would cost."""

    clone: Clone
    pause_s: float  # how long the guest is expected to be paused for it
    remedy: str | None = None  # what would make that shorter
    guest_pays: str = ""  # what it costs the guest as long as it is there, in words for `doctor`
    gives_url: bool = False  # whether it is known already that what is frozen cannot be read here
    is_concurrent: bool = False  # whether others like it, made at the same time, do not make it longer
    is_comparable: bool = False  # whether changed() can tell it from a later one


@dataclass(frozen=True)
class Room:
    """Where the guest's later writes take new space, since the old blocks are kept for the clone."""

    place: str  # for messages: '/srv/vms', 'the thin pool vg/pool', 'the metadata of vg/pool'
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class ClonesRoom(Room):
    """Room that the clone has to itself, for what the guest overwrites.  If it is full the clone is lost, and the guest
    goes on.
    """

    remedy: str  # what would give the next one more


@dataclass(frozen=True)
class Task:
    """What is asked of a driver."""

    snapshot_id: str
    origins: Sequence[str]  # that why_not() does not refuse
    reader: User  # QEMU's user, which must be able to read what is frozen


class Driver(Protocol):
    """Clones what is stored in one way.

    All functions may block for as long as the storage does: the caller sets the deadlines.  A function that is given a
    Clone alone may be called in any process, also after the host has been restarted.
    """

    async def why_not(self, origin: str) -> str | None:
        """Why it cannot clone what lies at that path, in words that follow its name and a colon, such as 'lies on ext4,
        which has no reflinks'; None if it can.
        """

    async def plan(self, task: Task) -> Sequence[Offer]:
        """What it would make, in as few pieces as it can.  Only looks.  Raises SnapmountError."""

    async def prepare(self, clone: Clone) -> None:
        """All that can be done before the guest is paused, to make the pause short.  Raises SnapmountError; what was
        made by then is undone by remove().
        """

    async def create(self, clone: Clone) -> None:
        """Take it, while the guest is paused.  Raises SnapmountError."""

    async def activate(self, clone: Clone) -> Clone:
        """See that the frozen paths can be read, after create() as after a restart of the host; the clone, with where
        they are now, which a device number may have changed.  Idempotent.  Raises StateError if the clone is there no
        more, UnreachableError if that may pass.
        """

    async def why_lost(self, clone: Clone) -> str | None:
        """Why the clone cannot be read, or is not of its moment any more; None if it is.  Raises SnapmountError if that
        cannot be told now.
        """

    async def rooms(self, clone: Clone) -> Sequence[Room]:
        """Where the guest's writes take their space from now.  Raises SpaceError if that cannot be told."""

    async def changed(self, older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
        """What differs between two clones of an origin, which are both there: all that may, in order, none twice.

        Raises StateError if that cannot be told, so that all must be taken as changed.
        """

    async def remove(self, clone: Clone) -> None:
        """Remove it, and what prepare() has made.  Idempotent.  Raises LeftoverError."""

    def by_hand(self, clone: Clone) -> Sequence[str]:
        """Commands for a shell that do what remove() could not.  Does not block."""
