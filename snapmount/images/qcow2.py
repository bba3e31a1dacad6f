"""qcow2 files: makes them for QEMU, by qemu-img(1), and looks at their headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import trio

from ..core.user import User
from ..errors import SpaceError, StateError, UnreachableError
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


async def has_whole_bitmap(path: str, name: str) -> bool:
    """Whether an image that no QEMU has open for writing has a bitmap of that name that is not broken: one that was in
    use when QEMU ended is.
    """
    said = await blocking.run(DEADLINE_S, ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path])
    if said.returncode:
        return False
    found = json.loads(said.stdout).get("format-specific", {}).get("data", {}).get("bitmaps", ())
    return any(each.get("name") == name and "in-use" not in each.get("flags", ()) for each in found)


async def add_bitmap(path: str, name: str) -> None:
    """Add a bitmap, in which QEMU will note what changes from now on, to an image that none has open.

    Raises StateError if that cannot be done.  Idempotent.
    """
    found = await blocking.run(DEADLINE_S, ["qemu-img", "bitmap", "--add", "-f", "qcow2", path, name])
    said = found.stderr.decode(errors="replace").strip()
    if found.returncode and "already exists" not in said:
        raise StateError(f"bitmap {name} cannot be added to {path}: {said}")


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
