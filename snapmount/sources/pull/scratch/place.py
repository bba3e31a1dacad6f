"""Which directory holds the scratch files where the user names none: the fastest of those that suit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....core import names, units
from ....errors import SpaceError
from ..space import Space

MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})  # scratch files there would take the host's memory
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "lustre", "gfs2", "ocfs2", "virtiofs", "beegfs"}
)


def why_not(fstype: str) -> str | None:
    """Why scratch files do not go to such a file system unasked."""
    if fstype in MEMORY:
        return f"it is in memory ({fstype})"
    if fstype in NETWORK or fstype.startswith("fuse"):
        return f"it is on a file server, or may be ({fstype})"
    return None


@dataclass(frozen=True)
class Candidate:
    """A directory that scratch files may go to, and what is known of its file system."""

    path: str
    fstype: str
    is_rotational: bool | None  # None: it cannot be told
    space: Space
    is_default: bool

    @property
    def why_not(self) -> str | None:
        """Why scratch files do not go there unasked."""
        return why_not(self.fstype)

    @property
    def holds_worst_case(self) -> bool:
        return self.space.free >= max(self.space.worst, self.space.floor)


@dataclass(frozen=True)
class Place:
    """The directory that was chosen, and why, in words that follow a colon."""

    path: str
    why: str


def choose(candidates: Sequence[Candidate]) -> Place:
    """The fastest of those that hold the worst case, or where none does, the one with most free space; the default
    where it is as good as another.  Raises SpaceError if none may be used unasked.
    """
    suitable = [each for each in candidates if not each.why_not]
    if not suitable:
        reasons = "; ".join(f"{each.path}: {each.why_not}" for each in candidates)
        raise SpaceError(
            f"there is no place for scratch files that may be used unasked ({reasons})",
            names.command("snapmount", "VM", "MOUNTPOINT", "--scratch-dir", "DIRECTORY"),
        )
    roomy = [each for each in suitable if each.holds_worst_case]
    if roomy:
        best = max(roomy, key=lambda each: (each.is_rotational is False, each.is_default))
        return Place(best.path, f"{_kind(best)}, room for the worst case")
    best = max(suitable, key=lambda each: (each.space.free, each.is_default))
    return Place(best.path, f"{_kind(best)}, {units.size(best.space.free)} free, no other place has more")


def _kind(candidate: Candidate) -> str:
    what = {False: "on a disk that does not rotate", True: "on a disk that rotates", None: "on a disk of unknown speed"}
    name = "the default" if candidate.is_default else "beside the VM's images"
    return f"{name}, {candidate.fstype} {what[candidate.is_rotational]}"


def warning(path: str, fstype: str) -> str | None:
    """What to say where the user has chosen a directory on such a file system."""
    if fstype in MEMORY:
        return f"{path} is in memory ({fstype}): what the guest overwrites will take this host's memory"
    return None
