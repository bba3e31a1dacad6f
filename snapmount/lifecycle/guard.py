"""Sees to it that a snapshot whose point in time is lost shows no wrong data and costs the guest nothing more: the one
path from the loss to what is left of the snapshot until it is deleted.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import trio

from ..core.lifecycle import State
from ..errors import SnapmountError, SpaceError, UnreachableError
from ..records.store import Lease
from ..sources import registry
from ..sources.source import Loss, Watch
from .withdrawal import withdraw

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """What ends reads, and lets the kernel forget what it has read."""

    stop_reads: Callable[[], None]
    forget_cached: Callable[[], Awaitable[None]]


class Guard:
    """The guard over one snapshot, in its server."""

    def __init__(self, lease: Lease, watch: Watch) -> None:
        self._claim = lease
        self.watch = watch
        self._shown: Shown | None = None
        self._came_before: SnapmountError | None = None  # the loss, before it was shown

    def shown(self, stop_reads: Callable[[], None], forget_cached: Callable[[], Awaitable[None]]) -> None:
        """The view is readable from now on: when the snapshot is lost, it stays, and its reads fail.  Raises as run()
        does, if it has been lost by now.
        """
        if self._came_before:
            raise self._came_before
        self._shown = Shown(stop_reads, forget_cached)

    async def run(self, scope: trio.CancelScope) -> None:
        """Return when the snapshot was lost, and all has been done that is to be done then.

        If that is before it is shown, the scope is cancelled, and SpaceError raised where it had to be given up, else
        UnreachableError.
        """
        loss = await self.watch.wait_lost()
        if self._shown:
            await lose(self._claim, self.watch, loss, self._shown)
            return
        log.error("the snapshot is %s before it is readable: %s", loss.state.value, loss.reason)
        self._came_before = self._error(loss)
        scope.cancel()
        if loss.state is State.GAVE_UP:  # the guest waits; all else is undone by who has begun it
            with trio.CancelScope(shield=True):
                await self.watch.release(loss, lambda _: None)
        raise self._came_before

    def _error(self, loss: Loss) -> SnapmountError:
        vm = self._claim.record.snapshot.vm_name
        if loss.state is State.GAVE_UP:
            return SpaceError(f"{vm}: the snapshot was given up before it was readable: {loss.reason}", loss.remedy)
        return UnreachableError(f"{vm}: the snapshot was lost before it was readable: {loss.reason}")


async def lose(lease: Lease, watch: Watch, loss: Loss, shown: Shown | None = None) -> None:
    """The path of every loss.  Reads end first, if there are any; what costs the guest then, at once: it waits."""

    def note(reason: str) -> None:
        log.error("the snapshot is %s: %s", "given up" if loss.state is State.GAVE_UP else "lost", reason)
        lease.note(loss.state, reason)

    note(loss.reason)
    async with trio.open_nursery() as nursery:
        if shown:
            shown.stop_reads()
            nursery.start_soon(shown.forget_cached)
        await watch.release(loss, note)
    if lease.record.state is State.GAVE_UP:  # and is not being ended already
        await clear(lease)


@contextlib.asynccontextmanager
async def guarded(lease: Lease) -> AsyncIterator[Guard]:
    """Guard a snapshot that has been made, while the block lasts.  Raises what Guard.run() does, maybe in a group."""
    async with registry.of(lease.record).watched(lease.record, lease.store) as watch, trio.open_nursery() as nursery:
        guard = Guard(lease, watch)
        nursery.start_soon(guard.run, nursery.cancel_scope)
        yield guard
        nursery.cancel_scope.cancel()


async def clear(lease: Lease) -> None:
    """Withdraw the LUNs of a snapshot that was given up and remove what its source has made; what fails is tried again
    when the snapshot is deleted.
    """
    try:
        await withdraw(lease)
        await registry.of(lease.record).destroy(lease.record.kept)
    except SnapmountError as error:
        log.error("what is left of the snapshot remains till it is deleted: %s", error)
