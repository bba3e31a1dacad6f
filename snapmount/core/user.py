"""A user as the kernel knows it: QEMU's, for whom scratch files and the view are made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    """Numeric ids, with the supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]
