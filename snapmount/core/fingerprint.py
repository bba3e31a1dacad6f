"""What tells an image file from another, and from what it is after a change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprint:
    """That of a file or block device at a moment."""

    path: str
    inode: int  # of a file; its file system's device may have another number after a reboot
    size_bytes: int
    mtime_ns: int  # 0 for a block device, whose node tells nothing of its content
    device: int = 0  # a block device's number
    sectors_written: int = 0  # to a block device by this host, since `boot_id`
    boot_id: str = ""  # of a block device
