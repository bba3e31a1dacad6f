"""Runs snapmount, and lets it be interrupted at a certain call: python -m tests.rig.interrupting CALL WORD...

CALL is MODULE:FUNCTION, or MODULE:CLASS.METHOD; SIGINT comes when that has returned, and from then on again and again
without a pause, until the process is gone: at each moment that there is.  To be run where tests are, in the project's
directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .dying import place_of


def run(call: str, *words: str | Path) -> tuple[int, str]:
    """Its exit code, and what it complains of."""
    done = _run(call, *words)
    return done.returncode, done.stderr


def told(call: str, *words: str | Path) -> str:
    """What it tells; it must succeed, and complain of nothing."""
    done = _run(call, *words)
    assert (done.returncode, done.stderr) == (0, ""), words
    return done.stdout


def _run(call: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", __name__, call, *map(str, words)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


def _interrupt_at(call: str) -> None:
    owner, name = place_of(call)
    function: Callable[..., Any] = getattr(owner, name)

    def last_call(*args: Any) -> Any:
        result = function(*args)
        signal.raise_signal(signal.SIGINT)
        _interrupt_on()
        return result

    setattr(owner, name, last_call)


def _interrupt_on() -> None:
    """Leave a process behind that interrupts this one as long as that is there."""
    interrupted = os.getpid()
    if os.fork() == 0:
        while os.getppid() == interrupted:
            os.kill(interrupted, signal.SIGINT)
        os._exit(0)


if __name__ == "__main__":
    _interrupt_at(sys.argv[1])
    sys.argv = ["snapmount", *sys.argv[2:]]
    from snapmount.__main__ import main

    main()
