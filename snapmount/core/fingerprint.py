"""What tells an image file from another, and from what it is after a change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprint:
    """That of a file or block device at a moment."""

    path: str
    device: int  # of the file system; of a block device its own number
    inode: int
    size_bytes: int
    mtime_ns: int  # 0 for a block device, whose node tells nothing of its content
    sectors_written: int = 0  # to a block device since it is there, by this host
