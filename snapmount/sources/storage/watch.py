"""Looks after a snapshot that was taken by storage: whether its clones are there, and whether the guest's writes, which
need new space for their sake, find some.

The snapshot is given up before they do not: its clones are removed.  That the VM ends is no matter.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import trio

from ...core import filling, limits, units
from ...core.filling import Pool, Rate
from ...core.lifecycle import State
from ...errors import SnapmountError
from ...host.logs import Problems
from ...images import fingerprint
from ...images.disks import Custody
from ...records.record import Record
from ...records.store import Store
from ...storage.driver import Clone, ClonesRoom, Room
from ..losswatch import LossWatch
from ..source import Loss
from . import clones, state
from .state import StorageState

log = logging.getLogger(__name__)

LOOK_SHARE = 4  # a look at the space is taken that many times as long after one as that has taken, or later
CLONES_S, CLONES_SHARE = 5.0, 20  # between looks at the clones themselves, and the same of those
NO_ROOM_S = 60.0  # between looks at storage that tells of no space
RETRY_S = 0.2
MORE_SPACE = "--source pull, whose scratch may lie elsewhere, or more space"


class Gauge:
    """Measures the space that the guest's writes take from for the sake of one clone, and how fast it goes."""

    def __init__(
        self, clone: Clone, most_bytes: int, floor_bytes: int = limits.FLOOR_BYTES, before: Gauge | None = None
    ) -> None:
        """`before` has measured the same places, by another clone."""
        self._clone = clone
        self._most_bytes = most_bytes  # that it can come to hold alone
        self._floor_bytes = floor_bytes
        self._filling: dict[str, Rate] = before._filling if before else {}

    async def read(self) -> list[tuple[Room, Pool]]:
        """The places now, and how they fill up.  Raises SpaceError."""
        rooms = await clones.rooms(self._clone)
        now = trio.current_time()
        for room in rooms:
            before = self._filling.get(room.place)
            free = -room.free_bytes
            self._filling[room.place] = before.after(now, free) if before else Rate.begin(now, free)
        return [(room, self._pool(room)) for room in rooms]

    def _pool(self, room: Room) -> Pool:
        floor = min(self._floor_bytes, room.total_bytes // 4)
        rate = self._filling[room.place].bytes_per_s
        return Pool(room.place, room.free_bytes, min(self._most_bytes, room.total_bytes), rate, floor)


class StorageWatch(LossWatch):
    """A Watch (see source.py)."""

    def __init__(self, record: Record, kept: StorageState) -> None:
        super().__init__()
        self.custody = Custody()
        self._kept = kept
        self._record = record

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch, until the snapshot is lost; it starts with a first look at the space."""
        most_bytes = sum(disk.size_bytes for disk in self._record.snapshot.disks)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lost_by, partial(fingerprint.wait_changed, self._kept.fingerprints))
            nursery.start_soon(self._lost_by, self.custody.wait_daemon_ended)
            nursery.start_soon(self._lost_by, self._wait_clone_gone)
            for clone in self._kept.clones:  # each by itself: slow storage must not keep others from being watched
                await nursery.start(self._wait_short, Gauge(clone, most_bytes))
            task_status.started()
            await self._is_lost.wait()
            nursery.cancel_scope.cancel()

    async def _lost_by(self, wait: Callable[[], Awaitable[str]]) -> None:
        self._lose(Loss(State.LOST, await wait()))

    async def _wait_clone_gone(self) -> str:
        """Return when a clone cannot be read any more, and why."""
        problems = Problems(log, "the clones cannot be looked at: %s")
        took_s = 0.0
        while True:
            await trio.sleep(max(CLONES_S, CLONES_SHARE * took_s))
            began = trio.current_time()
            try:
                if why := await clones.why_lost(self._kept):
                    return why
                problems.over()
            except SnapmountError as error:
                problems.met(error.message)
            took_s = trio.current_time() - began

    async def _wait_short(self, gauge: Gauge, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again and again, until there is too little space."""
        problems = Problems(log, "the space that the guest writes to cannot be watched: %s")
        has_started = False
        while True:
            began, wait_s = trio.current_time(), filling.LONGEST_WAIT_S
            try:
                found = await gauge.read()
                problems.over()
            except SnapmountError as error:
                problems.met(error.message)
            else:
                wait_s = look_again_s([pool for _, pool in found])
                for room, pool in found:
                    if pool.free < pool.reserve:
                        self._lose(loss(room, pool))
            if not has_started:
                has_started = True
                task_status.started()
            await trio.sleep(max(wait_s, LOOK_SHARE * (trio.current_time() - began)))

    async def release(self, _loss: Loss, _tell: Callable[[str], None]) -> None:
        """Let go of the clones and remove them, however often that must be tried."""
        self.custody.released.set()
        problems = Problems(log, "the clones cannot be removed yet: %s")
        while True:
            try:
                with trio.CancelScope(shield=True):
                    await clones.remove(self._kept.clones)  # a checkpoint's too
                return
            except SnapmountError as error:
                problems.met(error.message)
            await trio.sleep(RETRY_S)


def look_again_s(pools: list[Pool]) -> float:
    """How long one may look away."""
    if not pools:
        return NO_ROOM_S
    headroom = min((room for pool in pools if (room := pool.headroom) is not None), default=None)
    return filling.wait_s(headroom, pools)


def loss(room: Room, pool: Pool) -> Loss:
    """That the snapshot is given up for want of space there."""
    left = (
        f"{units.size(max(0, pool.free))} of {units.size(room.total_bytes)} left in {room.place} at "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, going at {units.rate(pool.bytes_per_s)}"
    )
    if isinstance(room, ClonesRoom):
        why = "its room for what the guest overwrites was nearly full, and the guest goes on"
        return Loss(State.GAVE_UP, f"{why} ({left})", room.remedy)
    return Loss(State.GAVE_UP, f"the guest's writes were about to find no space ({left})", MORE_SPACE)


@asynccontextmanager
async def watched(record: Record, _store: Store) -> AsyncIterator[StorageWatch]:
    """See Source."""
    watch = StorageWatch(record, state.of(record))
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        yield watch
        nursery.cancel_scope.cancel()
