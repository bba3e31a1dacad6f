"""What a process has open, as files and block devices: by their numbers, since a name may have come to mean another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from .writers import PROC, Key, key_of


def not_open(paths: Sequence[str], pid: int) -> list[str]:
    """Which of these the process does not have open: a file of that name has come to its place, or it uses another.

    proc_pid_fd(5).  Raises OSError if the process is gone, is another user's, or has what is not there.
    """
    opened = set(_open(pid))
    return [path for path in paths if key_of(os.stat(path)) not in opened]


def _open(pid: int) -> Iterator[Key | None]:
    directory = PROC / str(pid) / "fd"
    for number in os.listdir(directory):
        try:
            yield key_of(os.stat(directory / number))
        except OSError:  # it has just been closed
            continue
