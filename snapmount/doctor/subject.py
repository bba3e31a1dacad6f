"""Whom the doctor looks at: this user, with this connection and these scratch places, on this host."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..core.remedies import Remedies, distribution


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    connect: str | None  # libvirt connection URI; None: as take would use
    scratch_dir: str | None  # besides the default place
    remedies: Remedies
    path: str  # where programs are looked for

    @classmethod
    def here(cls, connect: str | None, scratch_dir: str | None) -> Subject:
        """The calling user, on this host."""
        remedies = Remedies(
            distribution=distribution(_os_release()),
            is_root=os.geteuid() == 0,
            has_systemd=Path("/run/systemd/system").exists(),  # sd_booted(3)
        )
        return cls(connect, scratch_dir, remedies, f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")

    def has(self, program: str) -> bool:
        """Whether the program is installed."""
        return shutil.which(program, path=self.path) is not None

    def daemon(self, *candidates: str) -> str | None:
        """The first of these programs that is installed."""
        return next(filter(self.has, candidates), None)


def _os_release() -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            continue
    return ""
