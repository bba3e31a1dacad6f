"""Runs what a command does until it is done, or until a signal asks for its end: then it undoes what it has begun.

A signal that comes when it is done changes nothing any more: the command goes on to tell what it has done.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import trio

from ..errors import InterruptedByUserError, first_cause
from . import signals

T = TypeVar("T")

INTERRUPTED = "interrupted"


def run(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """What function(*args) returns; of the errors of a nursery, the one to report is raised.

    SIGINT, SIGTERM and SIGHUP cancel it, also one that has come since the last step of the command:
    InterruptedByUserError.
    """
    return _run(partial(_until_signal, function), *args)


def finish(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """As run(), but whatever signals come: for what undoes something, and has its own deadline."""

    async def to_its_end() -> T:
        with _woken_up():
            return await function(*args)

    result = _run(to_its_end)
    signals.take_noted()
    return result


def _run(function: Callable[..., Awaitable[T]], *args: object) -> T:
    signals.note()
    try:
        return trio.run(function, *args)
    except BaseException as error:
        raise first_cause(error) from None


@contextlib.contextmanager
def _woken_up() -> Iterator[None]:
    """Signals wake trio up while the block lasts, with which trio.run() ends.

    trio (0.35) closes the socket for that before it tells Python; a signal between the two would print a traceback.
    """
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def received(told: str) -> Iterator[Callable[[], Awaitable[None]]]:
    """A function that waits for a signal that comes while the block lasts; before and after it they are noted.  Raises
    InterruptedByUserError, which tells that, if one has been noted already.

    trio.open_signal_receiver() would not do: its handler takes longer than the next signal needs to come, and a flood
    of them runs into Python's limit of recursion.
    """
    one_came = trio.Event()

    async def wait() -> None:
        await one_came.wait()
        signals.take_noted()

    signals.note(partial(trio.lowlevel.current_trio_token().run_sync_soon, one_came.set))
    try:
        with _woken_up():
            if signals.take_noted():
                raise InterruptedByUserError(told)
            yield wait
    finally:
        signals.note()


async def _until_signal(function: Callable[..., Awaitable[T]], *args: object) -> T:
    with received(INTERRUPTED) as came:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await came()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            result = await function(*args)
            nursery.cancel_scope.cancel()
            return result
    raise InterruptedByUserError(INTERRUPTED)
