"""The one path of a loss: noted, reads end, what costs the guest is released, and what was given up goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from snapmount.core.lifecycle import State
from snapmount.errors import SnapmountError, SpaceError, UnreachableError, first_cause
from snapmount.lifecycle.guard import Guard, guarded
from snapmount.records.kept import Kept
from snapmount.records.record import Record
from snapmount.records.store import Lease, Store
from snapmount.sources import registry
from snapmount.sources.source import Loss

from ..rig.records import OwnStore, a_record

REASON, BETTER = "it broke", "it was broken by somebody"


class Tape:
    """A source, and its watch, that writes down what is asked of it."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.broken = trio.Event()
        self.asked: list[str] = []

    @asynccontextmanager
    async def watched(self, record: Record, store: Store) -> AsyncIterator[Tape]:
        yield self

    async def wait_lost(self) -> Loss:
        await self.broken.wait()
        return self.loss

    async def release(self, loss: Loss, tell: Callable[[str], None]) -> None:
        assert loss is self.loss
        self.asked.append("released")
        tell(BETTER)

    async def destroy(self, kept: Kept) -> None:
        self.asked.append(f"destroyed {kept.id}")


@pytest.fixture
def lease(store: OwnStore) -> Lease:
    lease = store.lease(a_record())
    lease.update(state=State.ACTIVE)
    return lease


def tape(monkeypatch: pytest.MonkeyPatch, state: State) -> Tape:
    made = Tape(Loss(state, REASON, "more tape"))
    monkeypatch.setattr(registry, "SOURCES", {"pull": made})
    return made


@pytest.mark.parametrize(("state", "then"), [(State.LOST, []), (State.GAVE_UP, ["destroyed 3f2a91bc"])])
async def test_a_view_that_is_shown_stays_and_its_reads_end_before_anything_else(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, state: State, then: list[str]
) -> None:
    source, forgotten = tape(monkeypatch, state), trio.Event()

    def stop_reads() -> None:
        assert (lease.record.state, lease.record.reason) == (state, REASON)
        assert source.asked == []
        source.asked.append("reads ended")

    async def forget_cached() -> None:
        forgotten.set()

    guard = Guard(lease, source)
    guard.shown(stop_reads, forget_cached)
    source.broken.set()
    await guard.run(trio.CancelScope())
    assert source.asked == ["reads ended", "released", *then]
    assert forgotten.is_set()
    assert lease.record.state is state
    assert lease.record.reason == (BETTER if state is State.LOST else REASON), "which is known better"


@pytest.mark.parametrize(
    ("state", "kind", "released"), [(State.GAVE_UP, SpaceError, ["released"]), (State.LOST, UnreachableError, [])]
)
async def test_one_that_is_lost_before_it_is_shown_is_an_error(
    lease: Lease,
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    kind: type[SnapmountError],
    released: list[str],
) -> None:
    source = tape(monkeypatch, state)
    source.broken.set()

    async def guard() -> None:
        async with guarded(lease):
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await guard()
    error = first_cause(caught.value)
    assert isinstance(error, kind)
    assert f"before it was readable: {REASON}" in error.message
    assert source.asked == released
    assert lease.record.state is State.ACTIVE, "whoever takes it, or takes it over, undoes it"


async def test_a_view_that_is_ready_too_late_is_not_shown(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it waits for may be over at the moment of the loss: it is not cancelled then."""
    source = tape(monkeypatch, State.GAVE_UP)
    guard = Guard(lease, source)
    source.broken.set()
    with pytest.raises(SpaceError), trio.CancelScope() as scope:
        await guard.run(scope)
    assert scope.cancel_called
    with pytest.raises(SpaceError, match="before it was readable"):
        guard.shown(lambda: None, trio.lowlevel.checkpoint)
