"""What is installed on this host, and the commands that mend it where something is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..core.remedies import Remedies, distribution


def search_path() -> str:
    """Where programs are looked for: those of the administrator too."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def has(program: str) -> bool:
    """Whether the program is installed."""
    return shutil.which(program, path=search_path()) is not None


def remedies() -> Remedies:
    """The commands that the calling user is told on this host."""
    return Remedies(
        distribution=distribution(_os_release()),
        is_root=os.geteuid() == 0,
        has_systemd=Path("/run/systemd/system").exists(),  # sd_booted(3)
    )


def _os_release() -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            continue
    return ""
