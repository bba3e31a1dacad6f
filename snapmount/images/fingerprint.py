"""Whether image files are still what they were: a snapshot of them lasts for as long as nobody changes, replaces or
removes them.

Nothing but a program that QEMU's lock does not stop does that: cp, rm, a file server.  It is noticed within seconds;
what has been read until then may be of either state.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import trio

from ..core.fingerprint import Fingerprint
from ..host import blocking
from ..host.blocking import Threads
from ..host.processes import boot_id

log = logging.getLogger(__name__)

LOOK_S = 10.0
PERIOD_S = 1.0
THREADS = Threads("fingerprints", 8)
SYS_BLOCK = Path("/sys/dev/block")


def of(path: str) -> Fingerprint:
    """That of a file or block device now.  Blocks.  Raises OSError."""
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        device = status.st_rdev
        return Fingerprint(path, 0, _size_bytes(device), 0, device, _sectors_written(device), boot_id())
    return Fingerprint(path, status.st_ino, status.st_size, status.st_mtime_ns)


def _size_bytes(device: int) -> int:
    return int((_directory(device) / "size").read_text()) * 512


def _sectors_written(device: int) -> int:
    """The seventh field of a device's statistics (Documentation/block/stat.rst in Linux)."""
    return int((_directory(device) / "stat").read_text().split()[6])


def _directory(device: int) -> Path:
    return SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"


def change(before: Fingerprint) -> str | None:
    """What has become of the file since then, as a sentence; None if nothing has.  Blocks."""
    try:
        now = of(before.path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{before.path} has been removed or renamed"
    except OSError as error:
        return f"{before.path} cannot be looked at: {error.strerror}"
    if now.boot_id and before.boot_id and now.boot_id != before.boot_id:
        return f"the host has been restarted, and nothing tells whether {before.path} has been written to"
    if (now.device, now.inode) != (before.device, before.inode):
        return f"{before.path} is another file now"
    if now.size_bytes != before.size_bytes:
        return f"{before.path} has {now.size_bytes} bytes now, it had {before.size_bytes}"
    if now != before:
        return f"{before.path} has been written to"
    return None


def first_change(fingerprints: Sequence[Fingerprint]) -> str | None:
    """The first of them that has changed.  Blocks."""
    return next((what for each in fingerprints if (what := change(each))), None)


async def wait_changed(fingerprints: Sequence[Fingerprint]) -> str:
    """Return what has become of one of them, as a sentence.

    Looked at each second: inotify(7) tells nothing of network file systems.  A file system that does not answer is not
    a change: reads have a deadline of their own.
    """
    is_told = False
    while True:
        try:
            what = await blocking.call(LOOK_S, first_change, fingerprints, threads=THREADS)
        except trio.TooSlowError:
            if not is_told:
                log.warning("the images could not be looked at within %g s; trying again", LOOK_S)
            is_told = True
            continue
        if what:
            return what
        is_told = False
        await trio.sleep(PERIOD_S)
