"""Whether a file can be believed, or run: nobody but root and the calling user can have written it, or put it there."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..core import names

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Doubt:
    """Why a file cannot be trusted."""

    why: str  # in words that follow 'it', such as 'belongs to user 1000'
    remedy: str | None = None  # the command that mends it, if no directory needs to be mended


def doubt(path: Path) -> Doubt | None:
    """Why the file, whose path is absolute, cannot be trusted; None if it can.

    Its directories count too, those of a symbolic link as those that it leads to.  Raises OSError if there is no file.
    """
    file = path.stat()
    if not stat.S_ISREG(file.st_mode):
        return Doubt("is no regular file")
    if why := _why_not(file):
        mended = (names.command("sudo", *words, str(path)) for words in (("chown", "root:"), ("chmod", "go-w")))
        return Doubt(why, " && ".join(mended))
    for directory in sorted({*path.parents, *path.resolve().parents}):
        found = directory.stat()
        is_sticky = bool(found.st_mode & stat.S_ISVTX)  # only its owner can replace a file (chmod(1))
        if why := _why_not(found, may_be_written=is_sticky):
            return Doubt(f"lies in {directory}, which {why}")
    return None


def _why_not(found: os.stat_result, may_be_written: bool = False) -> str | None:
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to user {found.st_uid}"
    if found.st_mode & _OTHERS and not may_be_written:
        return f"can be written by others than its owner (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
