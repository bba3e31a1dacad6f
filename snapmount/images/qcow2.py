"""Makes qcow2 files for QEMU, by qemu-img(1)."""

from __future__ import annotations

from ..core.user import User
from ..errors import SpaceError
from ..host import execution
from ..hypervisor import directories

DEADLINE_S = 30.0


async def create(path: str, size_bytes: int, user: User | None, *, backing: str | None = None, what: str) -> None:
    """Make an empty qcow2 file (or put one on a block device) of that virtual size, as that user or ourselves.

    The backing file is written down, but not looked at (-u).  Raises SpaceError, which calls the file `what`, or
    MissingError.
    """
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2"]
    command += ["-b", backing, "-F", "raw"] if backing else []
    as_user = directories.as_user(user) if user else {}
    command += [path, str(size_bytes)]
    await execution.output(command, DEADLINE_S, f"{what} cannot be made", SpaceError, **as_user)
