"""Processes that are stopped for a while, and commands that are interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

from .libvirtd import wait_for


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing in the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def interrupted(
    command: list[str], is_under_way: Callable[[], object], number: int, undo: Callable[[], object]
) -> tuple[int, str]:
    """Send the command a signal when it is under way: its exit code, and what it complained of.

    Where a busy host has let the signal come too late, what the command did is undone, and it is run again.
    """
    for _ in range(10):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            wait_for(is_under_way, f"{command} is under way")
            process.send_signal(number)
            _, complaint = process.communicate(timeout=60)
        if process.returncode != 0:
            return process.returncode, complaint
        undo()
    raise TimeoutError(f"{command} was always faster than the signal")
