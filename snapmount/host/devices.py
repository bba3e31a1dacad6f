"""The names of block devices."""

from __future__ import annotations

import os
import stat

import trio

from . import blocking

UDEV_S = 5.0


async def names(path: str) -> tuple[str, ...]:
    """The path, and if it is a block device's the links by which udev, if there is one, knows it: /dev/disk/by-id/...,
    /dev/vg/lv.
    """
    try:
        if not stat.S_ISBLK((await blocking.call(UDEV_S, os.stat, path)).st_mode):
            return (path,)
        asked = ["udevadm", "info", "--query=symlink", "--root", f"--name={path}"]  # udevadm(8)
        told = await blocking.run(UDEV_S, asked)
    except (OSError, trio.TooSlowError):
        return (path,)
    return (path, *sorted(map(os.fsdecode, told.stdout.split()))) if told.returncode == 0 else (path,)
