"""Running a command until a signal asks for its end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from snapmount.errors import InterruptedByUserError
from snapmount.host import interruptible, signals


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    signals.take_noted()
    for number, handler in before.items():
        signal.signal(number, handler)


async def raise_one() -> None:
    signal.raise_signal(signal.SIGTERM)
    await trio.sleep_forever()


def test_a_signal_ends_it_and_is_not_noted_any_more() -> None:
    with pytest.raises(InterruptedByUserError, match="interrupted"):
        interruptible.run(raise_one)
    assert not signals.have_come()


def test_a_signal_that_came_before_ends_it_before_it_begins() -> None:
    signals.note()
    signal.raise_signal(signal.SIGHUP)

    async def not_run() -> None:
        pytest.fail("it has begun")

    with pytest.raises(InterruptedByUserError):
        interruptible.run(not_run)


def test_signals_that_come_while_the_first_is_being_handled_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = trio.lowlevel.TrioToken.run_sync_soon

    def slow(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        original(*args, **options)

    monkeypatch.setattr(trio.lowlevel.TrioToken, "run_sync_soon", slow)
    with pytest.raises(InterruptedByUserError):
        interruptible.run(raise_one)


def test_what_must_reach_its_end_does() -> None:
    async def end() -> str:
        signal.raise_signal(signal.SIGINT)
        await trio.lowlevel.checkpoint()
        return "done"

    assert interruptible.finish(end) == "done"
    assert not signals.have_come()
