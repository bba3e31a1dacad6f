"""Makes and removes the clones of a snapshot by their drivers, each call under a deadline."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import trio

from ...core.extents import Extent
from ...core.imagechain import Chain, Layer
from ...errors import LeftoverError, SnapmountError, SpaceError, StateError, UnreachableError, first_cause
from ...host import blocking
from ...storage import drivers
from ...storage.driver import Clone, Driver, Room
from .state import StorageState

log = logging.getLogger(__name__)
T = TypeVar("T")

PREPARE_S = 120.0  # what the guest has written may have to be written back first
CREATE_S = 60.0  # while no guest waits for it
LOOK_S = 30.0
REMOVE_S = 45.0
COMPARE_S = 600.0  # while nobody waits but who takes it


def driver_of(clone: Clone) -> Driver:
    """Its driver; state.py admits no other clones than those of drivers that there are."""
    return drivers.DRIVERS[clone.driver]


async def in_time(deadline_s: float, call: Awaitable[T], what: str, kind: type[SnapmountError]) -> T:
    """What the call returns; raises an error of that kind at the deadline."""
    try:
        with trio.fail_after(deadline_s):
            return await call
    except trio.TooSlowError:
        raise kind(f"{what} has not ended within {deadline_s:g} s") from None


async def at_once(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Make all these calls at the same time.  Raises the error of one that fails; the others are cancelled then."""
    try:
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(call)
    except BaseExceptionGroup as group:
        raise first_cause(group) from None


async def prepare(kept: StorageState) -> None:
    """All that can be done before the VM is paused.  Raises SnapmountError."""
    for clone in kept.clones:
        what = f"preparing {_named(clone)}"
        await in_time(PREPARE_S, driver_of(clone).prepare(clone), what, StateError)


async def create(clone: Clone) -> None:
    """Take it: the moment of the snapshot.  Raises SnapmountError."""
    await in_time(CREATE_S, driver_of(clone).create(clone), f"making {_named(clone)}", StateError)


async def activated(kept: StorageState) -> StorageState:
    """The same, with where each clone is found now.  Raises StateError if one is there no more, UnreachableError."""
    return replace(kept, clones=tuple([await activate(clone) for clone in kept.clones]))


async def activate(clone: Clone) -> Clone:
    """See Driver.  Raises as activated() does."""
    return await in_time(LOOK_S, driver_of(clone).activate(clone), f"activating {_named(clone)}", UnreachableError)


async def changed(older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
    """What may differ between two active clones of an origin.  Raises SnapmountError if that cannot be told."""
    if older.driver != newer.driver:
        raise StateError(f"{origin} was cloned by {older.driver}, and is cloned by {newer.driver} now")
    called = driver_of(newer).changed(older, newer, origin)
    return await in_time(COMPARE_S, called, f"comparing {_named(newer)} with the one before", StateError)


async def shown(kept: StorageState) -> tuple[Chain, ...]:
    """What the disks consist of, by clones that have been activated.  Raises StateError if one is not there."""
    return tuple([Chain(chain.disk, tuple([await _located(each) for each in chain.layers])) for chain in kept.shown])


async def _located(layer: Layer) -> Layer:
    """The same, and whether it is a block device, as its origin need not be."""
    if not isinstance(layer.origin, str):
        return layer
    mode = (await blocking.on_path(layer.origin, LOOK_S, os.stat, layer.origin)).st_mode
    return replace(layer, is_device=stat.S_ISBLK(mode), data=layer.data and await _located(layer.data))


async def why_lost(kept: StorageState) -> str | None:
    """Why a clone cannot be read any more; None if all can.  Raises UnreachableError."""
    for clone in kept.clones:
        looked = driver_of(clone).why_lost(clone)
        if why := await in_time(LOOK_S, looked, f"looking at {_named(clone)}", UnreachableError):
            return why
    return None


async def rooms(clone: Clone) -> Sequence[Room]:
    """Where the guest's writes take new space for the clone's sake.  Raises SpaceError."""
    what = f"looking at the space of {_named(clone)}"
    return await in_time(LOOK_S, driver_of(clone).rooms(clone), what, SpaceError)


async def remove(made: Sequence[Clone]) -> None:
    """Remove these clones, all at the same time.  Idempotent.  Raises LeftoverError, once all have been tried."""
    failures: list[SnapmountError] = []

    async def one(clone: Clone) -> None:
        try:
            what = f"removing {_named(clone)}"
            await in_time(REMOVE_S, driver_of(clone).remove(clone), what, LeftoverError)
        except SnapmountError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for clone in made:
            nursery.start_soon(one, clone)
    for another in failures[1:]:
        log.error("%s", another.message)
    if failures:
        raise failures[0]


def by_hand(made: Sequence[Clone]) -> Sequence[str]:
    """Commands for a shell that do what remove() could not."""
    return [command for clone in made for command in driver_of(clone).by_hand(clone)]


def _named(clone: Clone) -> str:
    return f"the {clone.driver} clone of {', '.join(clone.origins)}"
