"""Makes qcow2 files for QEMU, by qemu-img(1)."""

from __future__ import annotations

import trio

from .. import blocking
from ..core.user import User
from ..errors import SpaceError
from . import directories

DEADLINE_S = 30.0


async def create(path: str, size_bytes: int, user: User | None, *, backing: str | None = None, what: str) -> None:
    """Make an empty qcow2 file (or put one on a block device) of that virtual size, as that user or ourselves.

    The backing file is written down, but not looked at (-u).  Raises SpaceError, which calls the file `what`, or
    MissingError.
    """
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2"]
    command += ["-b", backing, "-F", "raw"] if backing else []
    try:
        done = await blocking.run(
            DEADLINE_S, [*command, path, str(size_bytes)], **(directories.as_user(user) if user else {})
        )
    except OSError as error:
        raise blocking.cannot_run("qemu-img", error, "qemu-utils") from error
    except trio.TooSlowError:
        raise SpaceError(f"{path} was not made within {DEADLINE_S:g} s") from None
    if done.returncode:
        raise SpaceError(f"{what} cannot be made: {done.stderr.decode(errors='replace').strip()}")
