"""Calls that last for as long as the storage does not answer, in threads of their own."""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import trio

from ..errors import SnapmountError, SpaceError, StateError, first_cause
from ..host import blocking
from ..host.blocking import Threads

T = TypeVar("T")

THREADS = Threads("storage", 40)
MAKE_S = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


async def on_path(
    path: str, function: Callable[..., T], *args: Any, done: str = "read", kind: type[SnapmountError] = StateError
) -> T:
    """What function(*args) returns, run in a thread without a deadline: the caller of a driver sets it.

    An OSError becomes an error of that kind, or a SpaceError in place of a StateError if there is no space: the path
    cannot be read, or what `done` says.
    """
    try:
        return await blocking.call(math.inf, function, *args, threads=THREADS)
    except OSError as error:
        kind = SpaceError if kind is StateError and error.errno in _FULL else kind
        raise kind(f"{path} cannot be {done}: {error.strerror}") from error


async def make(path: str, function: Callable[..., object], *args: Any) -> None:
    """Call a function that makes a directory there.  It is not left behind when the caller is cancelled: what is made
    later, nobody would remove.

    Raises StateError, also if that takes more than ten seconds, or SpaceError.
    """
    try:
        with trio.fail_after(MAKE_S) as scope:
            scope.shield = True
            await on_path(path, function, *args, done="made")
    except trio.TooSlowError:
        raise StateError(f"{path}: its file system did not answer within {MAKE_S:g} s") from None


async def at_once(function: Callable[..., Awaitable[object]], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Call the function with each of these arguments, all at the same time.  Raises the error of one of them."""
    try:
        async with trio.open_nursery() as nursery:
            for each in arguments:
                nursery.start_soon(function, *each)
    except BaseExceptionGroup as errors:
        raise first_cause(errors) from None
