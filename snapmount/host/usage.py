"""How much the directories for QEMU take, and how much their file systems may still take: for those who look at them.

hypervisor/directories.py makes and removes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..core import names
from ..errors import SpaceError
from . import datadirectory


@dataclass(frozen=True)
class Use:
    """What a directory is for, in messages."""

    name: str
    remedy: str  # where it cannot be used


SCRATCH = Use("scratch directory", "snapmount VM MOUNTPOINT --scratch-dir DIRECTORY   (one that QEMU's user can write)")
OVERLAY = Use("overlay directory", "snapmount boot VM --overlay-dir DIRECTORY   (one that QEMU's user can write)")


def free_bytes(parent: Path, use: Use = SCRATCH) -> int:
    """What an ordinary user may still write below the directory.  The default parent need not exist yet.  Raises
    SpaceError.
    """
    parent = nearest(parent)
    try:
        status = os.statvfs(parent)
    except FileNotFoundError:
        raise SpaceError(f"the {use.name} {parent} does not exist", names.command("mkdir", str(parent))) from None
    except OSError as error:
        raise SpaceError(f"the {use.name} {parent} cannot be used: {error.strerror}", use.remedy) from error
    if not parent.is_dir():
        raise SpaceError(f"the {use.name} {parent} is not a directory", use.remedy)
    return status.f_bavail * status.f_frsize


def nearest(parent: Path) -> Path:
    """The directory, or of the default parent, which need not exist yet, the nearest that does."""
    if parent != datadirectory.path():
        return parent
    return next(each for each in (parent, *parent.parents) if each.exists())


def used_bytes(directory: Path) -> int:
    """What is written to the files, not what is reserved for them; 0 if they are gone."""
    total = 0
    try:
        for entry in os.scandir(directory):
            total += written_bytes(entry.stat(follow_symlinks=False))
    except OSError:
        pass  # it ended while we looked
    return total


def written_bytes(status: os.stat_result) -> int:
    """What is written to a file: its holes are not, and neither is what fallocate(2) has put beyond its end."""
    return min(status.st_size, status.st_blocks * 512)
