"""Looks at scratch space for those who show it; what does not answer soon, on a file server that hangs, is not told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from ..errors import SpaceError
from . import usage

GLANCE_S = 2.0

_hung: set[Path] = set()  # who shows many snapshots waits once for a place


def used_bytes(directory: Path) -> int | None:
    """What is written to the files of a scratch or overlay directory; None if that cannot be told."""
    return _glance(directory.parent, usage.used_bytes, directory)


def free_bytes(parent: Path) -> int | None:
    """What may still be written below the directory; None if that cannot be told."""
    try:
        return _glance(parent, usage.free_bytes, parent)
    except SpaceError:
        return None


def _glance(place: Path, look: Callable[[Path], int], path: Path) -> int | None:
    """What the look at the path finds; None if the place does not answer.  Raises what the look does."""
    if place in _hung:
        return None
    answers: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(look(path))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=GLANCE_S)
    except queue.Empty:
        _hung.add(place)
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer
