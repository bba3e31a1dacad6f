"""Whether the host is being shut down or restarted: what outlives that is not ended by it."""

from __future__ import annotations

from pathlib import Path

import trio

from . import blocking

ASK_S = 3.0
LAST = "systemd-shutdow"  # the program in systemd's place in the end, systemd-shutdown(8), as the kernel shows it
INIT = Path("/proc/1/comm")


async def is_under_way() -> bool:
    """As systemd tells (systemctl(1), is-system-running); False if it does not."""
    if _has_handed_over():
        return True
    try:
        done = await blocking.run(ASK_S, ["systemctl", "is-system-running"])
    except (OSError, trio.TooSlowError):
        return False
    return done.stdout.strip() == b"stopping"


def _has_handed_over() -> bool:
    try:
        return INIT.read_text().strip() == LAST
    except OSError:
        return False
