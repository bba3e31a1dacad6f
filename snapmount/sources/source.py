"""What a source is: the protocol that each of them keeps, and the values it speaks in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from ..core.checkpoint import Checkpoint, Since
from ..core.cost import Cost
from ..core.image import OpenImage
from ..core.lifecycle import State
from ..core.plan import Choice, Selection
from ..core.snapshot import Disk
from ..core.user import User
from ..errors import StateError
from ..hypervisor import Domain, Hypervisor
from ..records.kept import Kept
from ..records.record import Record
from ..records.store import Lease, Store


@dataclass(frozen=True)
class Subject:
    """A VM of which a snapshot is asked for, as a source looks at it."""

    snapshot_id: str  # that it will have
    domain: Domain
    connection: Hypervisor
    connect: str  # its URI
    xml: str  # the VM's definition
    user: User  # QEMU's
    selection: Selection  # of its disks
    choice: Choice
    quiesce: bool
    checkpoint: str | None  # the name of one to be made with it
    since: Since | None  # the checkpoint from which on changes are asked for
    options: Mapping[str, Any]  # what is asked of each kind of source, which alone reads it
    others: Sequence[Record]  # the snapshots there are
    warn: Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a source would make."""

    disks: tuple[Disk, ...]
    state: Mapping[str, Any]  # {"kind": ..., ...}: what the record keeps for it
    cost: Cost
    checkpoint: str | None = None  # the name of the one that it would make
    directory: str | None = None  # that it will make: named `snapmount-ID`, so that the journal tells whose it is
    elsewhere: tuple[str, ...] = ()  # disks that will have URLs alone, as far as that is known


@dataclass(frozen=True)
class Loss:
    """The point in time can no longer be served."""

    state: State  # LOST, or GAVE_UP where the source itself will end it
    reason: str
    remedy: str | None = None  # what would keep the next one from that


class Watch(Protocol):
    """Looks after a snapshot that has been made."""

    async def wait_lost(self) -> Loss:
        """Return as soon as the point in time is lost, or must be given up before the guest suffers."""

    async def release(self, loss: Loss, tell: Callable[[str], None]) -> None:
        """End what costs the guest, however often that must be tried.  A better reason of the loss is told as soon as
        it is known.
        """


@dataclass(frozen=True)
class ByHand:
    """Commands for a shell that do what the source could not."""

    release: Sequence[str] = ()
    destroy: Sequence[str] = ()
    paths: Sequence[str] = field(default=())  # files and directories, to be removed


class Source(Protocol):
    """Makes snapshots of one kind and keeps them.  What is its own of a snapshot, `record.source` keeps; a function
    that has a Kept needs no more than the journal tells, and can be called in any process.
    """

    @property
    def OUTLIVES_REBOOT(self) -> bool:  # noqa: N802
        """Whether its point in time is there still when the host has been restarted."""

    async def why_not(self, domain: Domain) -> StateError | None:
        """Why it cannot take a snapshot of the VM in the state that this is in; None if it can."""

    async def plan(self, subject: Subject) -> Plan:
        """Only looks.  Raises SnapmountError if no snapshot can be taken."""

    async def create(self, subject: Subject, lease: Lease) -> datetime:
        """Make what the record describes; return the moment it is of.  Raises SnapmountError; what has been made by
        then is undone by release() and destroy().
        """

    def open(self, record: Record, watch: Watch) -> AbstractAsyncContextManager[Sequence[OpenImage]]:
        """Its disks, in their order, after a take and after a crash alike; `watch` is what watched() has given, which
        may have to know.  Raises StateError if they are gone, UnreachableError if they cannot be had now.
        """

    async def why_lost(self, record: Record) -> str | None:
        """Why its point in time is there no more; None if it is.  Raises UnreachableError."""

    def watched(self, record: Record, store: Store) -> AbstractAsyncContextManager[Watch]:
        """Look after it while the block lasts; it has been looked at once when that begins."""

    async def release(self, kept: Kept) -> None:
        """End what costs the guest, now.  Idempotent.  Raises UnreachableError, to be tried again."""

    async def check_unused(self, kept: Kept) -> None:
        """Raise LeftoverError if something that destroy() would remove is in use, or out of sight; UnreachableError
        where that cannot be told.
        """

    async def destroy(self, kept: Kept) -> None:
        """Remove all that it has made.  Idempotent.  Raises LeftoverError."""

    async def discard(self, checkpoint: Checkpoint) -> None:
        """Remove what it keeps of a checkpoint.  Idempotent.  Raises LeftoverError, UnreachableError."""

    @property
    def CHECKPOINTS_COST(self) -> bool:  # noqa: N802
        """Whether its checkpoints cost the guest as long as they are there, so that somebody must keep watch."""

    async def keep(
        self,
        current: Callable[[], Awaitable[Sequence[Checkpoint]]],
        discard: Callable[[Checkpoint, str], Awaitable[None]],
    ) -> None:
        """Keep watch over a VM's checkpoints, which current() tells anew, oldest first, and have those discarded that
        must go for the guest's sake, with the reason.  Return when there are none.  Raises as current() does.
        """

    def by_hand(self, kept: Kept) -> ByHand:
        """The commands that do what release() and destroy() could not.  Blocks no longer than a look at /dev does."""
