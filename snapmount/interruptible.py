"""Runs what a command does until it is done, or until a signal asks for its end: then it undoes what it has begun.

A signal that comes when it is done changes nothing any more: the command goes on to tell what it has done.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import trio

from .errors import InterruptedByUserError, first_cause

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """What function(*args) returns; of the errors of a nursery, the one to report is raised.

    SIGINT, SIGTERM and SIGHUP cancel it: InterruptedByUserError.
    """
    came: list[int] = []  # before it has begun, or when it is done
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        return trio.run(_until_signal, came, function, *args)
    except BaseException as error:
        restore(before)
        raise first_cause(error) from None


def restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Have the signals handled so."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


async def _until_signal(came: list[int], function: Callable[..., Awaitable[T]], *args: object) -> T:
    with trio.open_signal_receiver(*SIGNALS) as signals:
        if came:
            raise InterruptedByUserError("interrupted")
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await signals.__anext__()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            result = await function(*args)
            nursery.cancel_scope.cancel()
            return result
    raise InterruptedByUserError("interrupted")
