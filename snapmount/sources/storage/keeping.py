"""Watches the space that the guest's writes take for the sake of checkpoints, which keep clones while no snapshot is
there to be watched: they are given up, the oldest first, before the guest finds none.

They go sooner than a snapshot does, which somebody reads.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from ...core import limits
from ...core.checkpoint import Checkpoint
from ...core.filling import Pool
from ...errors import SnapmountError, StateError
from ...host.logs import Problems
from . import marks, watch
from .watch import Gauge

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0  # for other checkpoints
FREED_S = 1.0  # of filling.REACTION_S
FLOOR_BYTES = 2 * limits.FLOOR_BYTES

Current = Callable[[], Awaitable[Sequence[Checkpoint]]]
Discard = Callable[[Checkpoint, str], Awaitable[None]]


async def keep(current: Current, discard: Discard) -> None:
    """See Source."""
    watched: set[tuple[str, ...]] = set()
    async with trio.open_nursery() as nursery:
        while found := await current():
            for origins in {clone.origins for each in found for clone in _marks(each).clones} - watched:
                watched.add(origins)
                nursery.start_soon(_keep_watch, origins, current, discard)  # slow storage keeps no other from it
            await trio.sleep(LOOK_AGAIN_S)
        nursery.cancel_scope.cancel()


def _marks(checkpoint: Checkpoint) -> marks.StorageMarks:
    """What it keeps: nothing if its record is broken, which `checkpoints` tells."""
    try:
        return marks.of(checkpoint)
    except StateError:
        return marks.NOTHING


async def _keep_watch(origins: tuple[str, ...], current: Current, discard: Discard) -> None:
    """Of what those origins are stored on."""
    problems = Problems(log, "the space that the guest writes to cannot be watched: %s")
    gauge: Gauge | None = None
    while True:
        began, wait_s = trio.current_time(), LOOK_AGAIN_S
        try:
            kept = [each for each in await current() if _marks(each).of(origins[0])]
            if kept:
                gauge = _gauge(kept[-1], origins, gauge)
                found = await gauge.read()
                wait_s = watch.look_again_s([pool for _, pool in found])
                short = next((watch.loss(*each) for each in found if _is_short(each[1])), None)
                if short:
                    await discard(kept[0], short.reason)
                    await _until_freed(gauge)
                    continue
            problems.over()
        except SnapmountError as error:
            problems.met(error.message)
        await trio.sleep(max(wait_s, watch.LOOK_SHARE * (trio.current_time() - began)))


async def _until_freed(gauge: Gauge) -> None:
    """A file system frees what was removed a moment later; who looks too soon would have the next one removed too.

    Raises SpaceError.
    """
    with trio.move_on_after(FREED_S):
        while any(_is_short(pool) for _, pool in await gauge.read()):
            await trio.sleep(FREED_S / 20)


def _is_short(pool: Pool) -> bool:
    return pool.free < pool.reserve


def _gauge(newest: Checkpoint, origins: tuple[str, ...], before: Gauge | None) -> Gauge:
    """One that looks where the newest clone lies, and goes on with the rates that the one before has found."""
    clone = _marks(newest).of(origins[0])
    assert clone
    most_bytes = sum(disk.size_bytes for disk in newest.disks)
    return Gauge(clone, most_bytes, FLOOR_BYTES, before)
