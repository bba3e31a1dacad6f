"""Runs snapmount, and lets its server be killed at a certain call: python -m tests.rig.dying CALL ALSO WORD...

CALL is MODULE:FUNCTION, or MODULE:CLASS.METHOD, async; the server, which with --foreground is the command itself, is
killed when that has returned, and before it the command that waits for it, its standby, or nobody, as ALSO says.  To be
run where tests are, in the project's directory.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

COMMAND, STANDBY, NOBODY = "command", "standby", "nobody"


def command(call: str, also: str, *words: str | Path) -> list[str]:
    """Such a command."""
    return [sys.executable, "-m", "tests.rig.dying", call, also, *map(str, words)]


def run(call: str, also: str, *words: str | Path) -> tuple[int, str]:
    """Its exit code, and what it complains of."""
    words = tuple(command(call, also, *words))
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def place_of(call: str) -> tuple[Any, str]:
    """What has the function that a CALL names, and the function's name there."""
    module, _, path = call.partition(":")
    *holders, name = path.split(".")
    return functools.reduce(getattr, holders, importlib.import_module(module)), name


def _let_die(call: str, also: str, *words: str) -> None:
    owner, name = place_of(call)
    function: Callable[..., Awaitable[Any]] = getattr(owner, name)
    process_of_server = os.getpid if "--foreground" in words else os.getppid
    command = os.getpid()

    async def last_call(*args: Any, **kwargs: Any) -> Any:
        result = await function(*args, **kwargs)
        if process_of_server() == command:
            _die(also)
        return result

    setattr(owner, name, last_call)


def _die(also: str) -> None:
    """The server's end."""
    if also == COMMAND:
        os.kill(os.getppid(), signal.SIGKILL)
    elif also == STANDBY:
        subprocess.run(["pkill", "-KILL", "-P", str(os.getpid())], check=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _let_die(*sys.argv[1:])
    sys.argv = ["snapmount", *sys.argv[3:]]
    from snapmount.__main__ import main

    main()
