"""Calls of storage that does not answer hold nobody up for ever; what makes something is not left behind."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
import trio

from snapmount.errors import LeftoverError, SnapmountError, SpaceError, StateError
from snapmount.storage import calls


def failing(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, "as it happens")

    return fail


@pytest.mark.parametrize(
    ("number", "asked", "kind"),
    [
        (errno.EIO, StateError, StateError),
        (errno.ENOSPC, StateError, SpaceError),
        (errno.EDQUOT, StateError, SpaceError),
        (errno.ENOSPC, LeftoverError, LeftoverError),
    ],
)
async def test_an_error_of_the_system_is_told_in_words(
    number: int, asked: type[SnapmountError], kind: type[SnapmountError]
) -> None:
    with pytest.raises(kind) as caught:
        await calls.on_path("/x", failing(number), done="cloned", kind=asked)
    assert type(caught.value) is kind
    assert caught.value.message == "/x cannot be cloned: as it happens"


async def test_who_asked_sets_the_deadline(hang: threading.Event) -> None:
    with trio.move_on_after(0.01) as scope:
        await calls.on_path("/x", hang.wait)
    assert scope.cancelled_caught


async def test_what_makes_something_is_waited_for_though_nobody_wants_it_any_more() -> None:
    has_begun, go_on = trio.Event(), threading.Event()
    made = []

    def make() -> None:
        trio.from_thread.run_sync(has_begun.set)
        go_on.wait()
        made.append("it")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.make, "/x", make)
        await has_begun.wait()
        nursery.cancel_scope.cancel()
        go_on.set()
    assert made == ["it"]


async def test_what_makes_something_is_not_waited_for_for_ever(
    hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAKE_S", 0.01)
    with pytest.raises(StateError, match=r"/x: its file system did not answer within 0\.01 s"):
        await calls.make("/x", hang.wait)


async def test_of_calls_made_at_once_the_error_of_one_is_told_as_it_is() -> None:
    async def call(number: int) -> None:
        if number == 2:
            raise StateError("the second")
        await trio.sleep_forever()

    with pytest.raises(StateError, match="the second"):
        await calls.at_once(call, [(1,), (2,), (3,)])
