"""Runs what a command does until it is done, or until a signal asks for its end: then it undoes what it has begun."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from .errors import InterruptedByUserError, first_cause

T = TypeVar("T")


def run(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """What function(*args) returns; of the errors of a nursery, the one to report is raised.

    SIGINT, SIGTERM and SIGHUP cancel it: InterruptedByUserError.
    """
    try:
        return trio.run(_until_signal, function, *args)
    except BaseException as error:
        raise first_cause(error) from None


async def _until_signal(function: Callable[..., Awaitable[T]], *args: object) -> T:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await signals.__anext__()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            result = await function(*args)
            nursery.cancel_scope.cancel()
            return result
    raise InterruptedByUserError("interrupted")
