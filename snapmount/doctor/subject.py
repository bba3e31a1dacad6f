"""Whom the doctor looks at: this user, with this connection and these scratch places, on this host."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from ..core.remedies import Remedies
from ..host import programs


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
        return cls(connect, scratch_dir, programs.remedies(), programs.search_path())

    def has(self, program: str) -> bool:
        """Whether the program is installed."""
        return shutil.which(program, path=self.path) is not None
