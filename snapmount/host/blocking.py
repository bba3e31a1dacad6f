"""Blocking calls, kept off the trio thread and under a deadline."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from ..errors import SnapmountError, StateError

T = TypeVar("T")


class Threads:
    """Threads for one kind of calls that may hold theirs up for ever, so many at once: everything else still gets one.

    One limiter a run, as trio's own: a thread that outlives its run never gives its place back.
    """

    def __init__(self, kind: str, number: int) -> None:
        self._limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar(kind)
        self._number = number

    def limiter(self) -> trio.CapacityLimiter:
        """That of this run."""
        try:
            return self._limiter.get()
        except LookupError:
            limiter = trio.CapacityLimiter(self._number)
            self._limiter.set(limiter)
            return limiter


HOST = Threads("host", 40)  # trio's own are left to what ends, such as the start of a program


async def call(deadline_s: float, function: Callable[..., T], *args: Any, threads: Threads = HOST) -> T:
    """What function(*args) returns, run in a thread.

    Raises trio.TooSlowError at the deadline; the thread is then left behind, so a function whose effect must not come
    late needs an owner that can undo it.
    """
    with trio.fail_after(deadline_s):
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=threads.limiter())


async def on_path(
    path: str | os.PathLike[str],
    deadline_s: float,
    function: Callable[..., T],
    *args: Any,
    done: str = "read",
    kind: type[SnapmountError] = StateError,
    remedy: str | None = None,
) -> T:
    """call() for what is at the path, maybe on a file server that does not answer: it is read, "written" or "removed".

    Raises an error of that kind at the deadline, and in the place of an OSError.
    """
    try:
        return await call(deadline_s, function, *args)
    except trio.TooSlowError:
        raise kind(f"{path}: its file system did not answer within {deadline_s:g} s", remedy) from None
    except OSError as error:
        raise kind(f"{error.filename or path} cannot be {done}: {error.strerror}", remedy) from error


async def run(deadline_s: float, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program without a shell and capture what it prints; at the deadline it is killed and trio.TooSlowError
    raised.  Raises OSError if it cannot be started.
    """
    with trio.fail_after(deadline_s):
        return await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False, **options
        )
