"""What lvs(8) tells of logical volumes, and of which of them a snapshot can be taken.  Runs nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

FIELDS = (
    *("vg_name", "vg_uuid", "vg_free", "vg_extent_size", "vg_permissions"),
    *("vg_exported", "vg_partial", "vg_clustered", "vg_shared"),
    *("lv_name", "lv_uuid", "lv_size", "lv_layout", "lv_role", "lv_merging", "lv_tags", "pool_lv", "origin"),
)
# One row a volume, sizes in bytes.  lvm2 writes all values as strings in this format (lvmreport(7)).
OPTIONS = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", ",".join(FIELDS))


@dataclass(frozen=True)
class Group:
    """A volume group."""

    name: str
    free_bytes: int  # in extents that no volume has
    extent_bytes: int
    obstacle: str | None  # why no snapshot can be taken in it, to follow its name: 'is exported'


@dataclass(frozen=True)
class Volume:
    """A logical volume."""

    group: Group
    name: str
    device_uuid: str  # what device mapper knows it by
    size_bytes: int
    layout: frozenset[str]  # such as {"thin", "sparse"}
    role: frozenset[str]  # such as {"public", "origin", "thickorigin"}
    is_merging: bool
    tags: frozenset[str]
    pool: str  # the thin pool that a thin volume lies in, '' for others
    origin: str  # what it is a snapshot of, '' for nothing

    def __str__(self) -> str:
        return f"{self.group.name}/{self.name}"

    @property
    def is_thin(self) -> bool:
        """Whether it is a thin volume."""
        return "thin" in self.layout and "pool" not in self.layout


def parse(text: bytes) -> list[Volume]:
    """The volumes that lvs has printed with OPTIONS.  Raises ValueError."""
    try:
        report = json.loads(text)
        return [_volume(row) for part in report["report"] for row in part["lv"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"lvs has printed something else than a report: {error!r}") from error


def _volume(row: dict[str, Any]) -> Volume:
    return Volume(
        Group(row["vg_name"], int(row["vg_free"]), int(row["vg_extent_size"]), _obstacle(row)),
        row["lv_name"],
        device_uuid(row["vg_uuid"], row["lv_uuid"]),
        int(row["lv_size"]),
        _words(row["lv_layout"]),
        _words(row["lv_role"]),
        bool(row["lv_merging"]),
        _words(row["lv_tags"]),
        row["pool_lv"],
        row["origin"].strip("[]"),  # which mark hidden volumes
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}


def device_uuid(group_uuid: str, volume_uuid: str) -> str:
    """The uuid that lvm2 gives the device of a volume, as dmsetup(8) shows it."""
    return "LVM-" + (group_uuid + volume_uuid).replace("-", "")


def _obstacle(row: dict[str, Any]) -> str | None:
    if row["vg_shared"] or row["vg_clustered"]:
        return "is shared with other hosts"
    if row["vg_exported"]:
        return "is exported"
    if row["vg_partial"]:
        return "lacks some of its physical volumes"
    if row["vg_permissions"] != "writeable":
        return "is read-only"
    return None


def refusal(volume: Volume) -> str | None:
    """Why no snapshot can be taken of a volume, in words that follow its path and a colon; None if one can.

    lvm2 has these rules (validate_snapshot_origin() in lib/metadata/snapshot_manip.c), but for mirrors, of which it
    warns only.
    """
    if volume.group.obstacle:
        return f"lies in the volume group {volume.group.name}, which {volume.group.obstacle}"
    if "pool" in volume.layout | volume.role:
        return f"{volume} is a pool of other logical volumes"
    if "public" not in volume.role:
        return f"{volume} is a part of another logical volume"
    if "thicksnapshot" in volume.role:
        return f"{volume} is itself a snapshot, of the kind of which lvm2 takes none"
    if volume.is_merging:
        return f"{volume} is being merged with a snapshot"
    if "mirror" in volume.layout:
        return f"{volume} is a mirror of the old kind (not raid1), of which a snapshot can block for ever"
    return None
