"""Processes that are stopped for a while, commands that are interrupted, and programs that clear up when they are."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from .libvirtd import wait_for

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # prctl(2)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing in the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def clearing_up() -> Iterator[None]:
    """In the block, what would end this program raises SystemExit, so that it clears up; others that come then are
    ignored.

    contrib/as-under-systemd may have put tini(1) before us, which can be killed: its end is such a signal too.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    if Path(f"/proc/{os.getppid()}/comm").read_text().strip() == "tini":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(
    command: list[str], is_under_way: Callable[[], object], number: int, undo: Callable[[], object]
) -> tuple[int, str]:
    """Send the command a signal when it is under way: its exit code, and what it complained of.

    Where a busy host has let the signal come too late, what the command did is undone, and it is run again.
    """
    for _ in range(10):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: is_under_way() or process.poll() is not None, f"{command} is under way")
            process.send_signal(number)
            _, complaint = process.communicate(timeout=60)
        if process.returncode != 0:
            return process.returncode, complaint
        undo()
    raise TimeoutError(f"{command} was always faster than the signal")
