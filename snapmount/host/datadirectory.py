"""The directory for what outlives a process, and partly a reboot: the journal, scratch directories if the user names no
other place, and the mountpoints of snapshots that have no mountpoint of the user's.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SYSTEM = Path("/var/lib/libvirt/snapmount")


def path() -> Path:
    """Where it is: /var/lib/libvirt/snapmount for root, for others below $XDG_DATA_HOME; never on a tmpfs."""
    if os.geteuid() == 0:
        return SYSTEM
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "snapmount"


def make() -> None:
    """Make it, if it is not there.  Raises OSError."""
    path().mkdir(parents=True, exist_ok=True)
    path().chmod(0o711)  # whatever the umask: QEMU's user must get through


def remove_if_empty() -> None:
    """Remove it, unless other snapshots live there."""
    with contextlib.suppress(OSError):
        path().rmdir()


def view(snapshot_id: str) -> Path:
    """Where a snapshot without a mountpoint of the user's is mounted: QEMU's user must get there for scratch VMs."""
    return path() / f"snapmount-{snapshot_id}-view"


def make_view(directory: Path) -> None:
    """Make that mountpoint.  Raises OSError."""
    make()
    directory.mkdir(mode=0o700)


def remove_view(directory: Path) -> None:
    """Remove that mountpoint; none is fine.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()
    remove_if_empty()
