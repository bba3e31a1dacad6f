"""What ps(1) shows of this process."""

from __future__ import annotations

from pathlib import Path

from setproctitle import setproctitle

from ..core import names


def show(title: str, comm: str) -> None:
    """Let ps(1) show this process by that title in place of its command line, and `ps -o comm` by a shorter one, of 15
    characters at most (PR_SET_NAME(2const)).  Both are escaped where a terminal could not show them as they are.
    """
    setproctitle(names.printable(title))
    Path("/proc/self/comm").write_text(names.printable(comm))
