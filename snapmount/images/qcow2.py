"""qcow2 files: makes them for QEMU, by qemu-img(1), and looks at their headers."""

from __future__ import annotations

import struct
from pathlib import Path

import trio

from ..core.user import User
from ..errors import SpaceError, UnreachableError
from ..host import blocking, execution
from ..hypervisor import directories

DEADLINE_S = 30.0
MAGIC = b"QFI\xfb"


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


async def version(path: str) -> int | None:
    """The version of a qcow2 image, 2 or 3 (QEMU: docs/interop/qcow2.txt, "Header"); None if it cannot be seen here."""
    try:
        header = await blocking.call(DEADLINE_S, _header, path)
    except (OSError, trio.TooSlowError):
        return None
    magic, found = struct.unpack(">4sI", header) if len(header) == 8 else (b"", 0)
    return found if magic == MAGIC else None


async def remove_bitmap(path: str, name: str) -> None:
    """Remove a bitmap from an image that no QEMU has open; no such bitmap, or image, is fine.  Raises UnreachableError.

    qemu-img(1), "bitmap".
    """
    if await version(path) is None:
        return
    found = await blocking.run(DEADLINE_S, ["qemu-img", "bitmap", "--remove", "-f", "qcow2", path, name])
    said = found.stderr.decode(errors="replace").strip()
    if found.returncode and "not found" not in said:
        raise UnreachableError(f"bitmap {name} cannot be removed from {path}: {said}")


def _header(path: str) -> bytes:
    with Path(path).open("rb") as f:
        return f.read(8)
