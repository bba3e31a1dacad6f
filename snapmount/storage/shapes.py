"""What each driver keeps of its clones in records, for itself alone; here are the shapes, so that whoever only lists
snapshots can tell a record that is whole, and loads no driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..core.document import from_document
from ..core.user import User
from .driver import Clone

T = TypeVar("T")


@dataclass(frozen=True)
class ReflinkKept:
    """Of clones of image files."""

    mounted_on: str  # where the file system was mounted that they lie on
    uid: int  # to whom the clones belong
    gid: int


@dataclass(frozen=True)
class BtrfsKept:
    """Of a snapshot of a subvolume."""

    mounted_on: str  # where the file system was mounted that it lies on
    subvolume: str  # its top directory
    uuid: str  # of the subvolume
    inodes: tuple[int, ...]  # of the origins; a file has the same one in a snapshot
    gid: int  # the group that may read what it may read of the origins


@dataclass(frozen=True)
class LvmKept:
    """Of a snapshot of a logical volume."""

    group: str
    name: str
    origin: str  # the volume's name
    pool: str  # '' for a classic snapshot
    room_bytes: int  # 0 for a thin one
    is_enough: bool  # whether that never gets full, whatever the guest writes
    tag: str
    uid: int  # of the user who must be able to read it
    gid: int
    device_uuid: str = ""  # once it has been activated

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def path(self) -> str:
        return f"/dev/{self.group}/{self.name}"


@dataclass(frozen=True)
class HookKept:
    """Of a snapshot that a hook has taken."""

    hook: str
    snapshot: str
    name: str
    reader: User
    state: Mapping[str, Any]


# By the names of the drivers, see drivers.py.
SHAPES: Mapping[str, type[ReflinkKept] | type[BtrfsKept] | type[LvmKept] | type[HookKept]] = {
    "reflink": ReflinkKept,
    "btrfs": BtrfsKept,
    "lvm": LvmKept,
    "hook": HookKept,
}


def check(clone: Clone) -> None:
    """Raise ValueError for a clone that no driver could have made."""
    shape = SHAPES.get(clone.driver)
    if shape is None:
        raise ValueError(f"it is of a storage driver that this version of snapmount does not know: {clone.driver!r}")
    of(shape, clone)
    if not clone.frozen and shape is not HookKept:
        raise ValueError(f"the {clone.driver} clone of {clone.origins[0]} is nowhere")


def of(shape: type[T], clone: Clone) -> T:
    """What is kept of the clone.  Raises DocumentError for one that check() refuses."""
    return from_document(shape, clone.kept, f"kept of the {clone.driver} clone")
