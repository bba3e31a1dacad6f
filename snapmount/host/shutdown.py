"""Whether the host is being shut down or restarted: what outlives that is not ended by it."""

from __future__ import annotations

import trio

from . import blocking

ASK_S = 3.0


async def is_under_way() -> bool:
    """As systemd tells (systemctl(1), is-system-running); False if it does not."""
    try:
        done = await blocking.run(ASK_S, ["systemctl", "is-system-running"])
    except (OSError, trio.TooSlowError):
        return False
    return done.stdout.strip() == b"stopping"
