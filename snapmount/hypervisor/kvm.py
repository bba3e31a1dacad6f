"""Which users /dev/kvm is open to."""

from __future__ import annotations

import trio

from ..core.user import User
from ..host import blocking
from . import directories

LOOK_S = 10.0


async def is_open_to(user: User, device: str) -> bool:
    """Whether its permissions let the user read and write it; not where it is missing, or cannot be looked at."""
    try:
        done = await blocking.run(LOOK_S, ["test", "-r", device, "-a", "-w", device], **directories.as_user(user))
    except (OSError, trio.TooSlowError):
        return False
    return done.returncode == 0
