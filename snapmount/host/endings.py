"""Waits for the end of processes that are not ours to wait for, and brings it about."""

from __future__ import annotations

import logging
import signal

import trio

from .processes import KILLED_S, Process

log = logging.getLogger(__name__)


async def wait(process: Process) -> None:
    """Return when it has ended."""
    with process.opened() as descriptor:
        if descriptor is not None:
            await trio.lowlevel.wait_readable(descriptor)


async def end(process: Process, what: str, patience_s: float) -> None:
    """Ask it to end (SIGTERM), kill it where it has not done so in time, and return when it is gone or refuses to
    die too; `what` it is, for the log.
    """
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILLED_S)):
        process.send(number)
        process.send(signal.SIGCONT)  # one that is stopped would not notice
        with trio.move_on_after(wait_s):
            await wait(process)
            return
        log.warning("process %d, %s, has not ended within %g s", process.pid, what, wait_s)
