"""Runs snapmount, and lets it be interrupted at a certain call: python -m tests.rig.interrupting CALL WORD...

CALL is MODULE:FUNCTION, or MODULE:CLASS.METHOD; SIGINT comes when that has returned.  To be run where tests are, in the
project's directory.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .dying import place_of


def run(call: str, *words: str | Path) -> tuple[int, str]:
    """Its exit code, and what it complains of."""
    command = [sys.executable, "-m", __name__, call, *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def _interrupt_at(call: str) -> None:
    owner, name = place_of(call)
    function: Callable[..., Any] = getattr(owner, name)

    def last_call(*args: Any) -> Any:
        result = function(*args)
        signal.raise_signal(signal.SIGINT)
        return result

    setattr(owner, name, last_call)


if __name__ == "__main__":
    _interrupt_at(sys.argv[1])
    sys.argv = ["snapmount", *sys.argv[2:]]
    from snapmount.cli import main

    sys.exit(main())
