"""Blocking calls, kept off the trio thread and under a deadline."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio

T = TypeVar("T")


async def call(deadline_s: float, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What function(*args, **kwargs) returns, run in a thread.

    Raises trio.TooSlowError at the deadline; the thread is then left behind, so a function whose effect must not come
    late needs an owner that can undo it.
    """
    with trio.fail_after(deadline_s):
        return await trio.to_thread.run_sync(partial(function, *args, **kwargs), abandon_on_cancel=True)


async def run(deadline_s: float, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program without a shell and capture what it prints; at the deadline it is killed and trio.TooSlowError
    raised.
    """
    with trio.fail_after(deadline_s):
        return await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False, **options
        )
