"""What a snapshot is, as a value: the facts that its mount tells about it in snapshot.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from .diskdefinition import DEFAULT_BLOCK_SIZE
from .plan import LeftOut


@dataclass(frozen=True)
class Disk:
    """One disk of a snapshot."""

    name: str
    size_bytes: int
    format: str  # of the origin: raw, qcow2, ...
    origin: str
    allocated_bytes: int | None = None  # what its images took on the host then, backing files included, if known
    logical_block_size_bytes: int = DEFAULT_BLOCK_SIZE  # the guest's; partition tables count in it

    @property
    def file(self) -> str:
        """Its file in the mount."""
        return f"{self.name}.raw"

    @property
    def lun_file(self) -> str:
        """What backs its LUN: a file in the mount that is not listed."""
        return f".{self.name}.lun"

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Disk:
        """The disk of that shape in snapshot.json; what versions before did not tell has its default."""
        return cls(
            name=document["name"],
            size_bytes=document["size_bytes"],
            format=document["format"],
            origin=document["origin"],
            allocated_bytes=document.get("allocated_bytes"),
            logical_block_size_bytes=document.get("logical_block_size_bytes", DEFAULT_BLOCK_SIZE),
        )


@dataclass(frozen=True)
class Nvram:
    """The variables of the VM's firmware in a snapshot: a copy of the file that QEMU keeps them in."""

    size_bytes: int
    format: str  # of the file: raw, qcow2 or json
    origin: str

    @property
    def file(self) -> str:
        """Its file in the mount."""
        return "nvram"


@dataclass(frozen=True)
class Snapshot:
    """The constant facts of a snapshot."""

    id: str
    vm_name: str
    vm_uuid: str
    created: datetime  # UTC
    source: str  # which source made it: 'pull'
    quiesced: bool
    disks: tuple[Disk, ...]
    left_out: tuple[LeftOut, ...]
    nvram: Nvram | None = None  # where the firmware keeps variables, and they could be copied

    @property
    def created_ns(self) -> int:
        """The moment in nanoseconds since 1970, exact to the microsecond: the mtime of all files in the mount."""
        seconds = int(self.created.replace(microsecond=0).timestamp())
        return seconds * 10**9 + self.created.microsecond * 1000

    def document(self) -> dict[str, Any]:
        """The shape of snapshot.json (see FILES in the man page)."""
        return {
            "id": self.id,
            "vm": {"name": self.vm_name, "uuid": self.vm_uuid},
            "created": format_time(self.created),
            "source": self.source,
            "quiesced": self.quiesced,
            "disks": [asdict(disk) | {"file": disk.file} for disk in self.disks],
            "nvram": self.nvram and asdict(self.nvram) | {"file": self.nvram.file},
            "left_out": [asdict(each) for each in self.left_out],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Snapshot:
        """The snapshot that document() describes.  Raises KeyError, TypeError or ValueError for any other shape."""
        created = datetime.fromisoformat(document["created"])
        if created.tzinfo is None:
            raise ValueError("its time has no zone")
        nvram = document["nvram"]
        return cls(
            id=document["id"],
            vm_name=document["vm"]["name"],
            vm_uuid=document["vm"]["uuid"],
            created=created,
            source=document["source"],
            quiesced=document["quiesced"],
            disks=tuple(Disk.from_document(disk) for disk in document["disks"]),
            left_out=tuple(LeftOut(each["name"], each["why"]) for each in document["left_out"]),
            nvram=None if nvram is None else Nvram(nvram["size_bytes"], nvram["format"], nvram["origin"]),
        )


def format_time(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: '2026-11-23T12:05:01.000123Z'."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def dump(document: Mapping[str, Any]) -> bytes:
    """A JSON document as the bytes of a file: indented, a newline at its end.

    All ASCII: file names that are no UTF-8 come through as escaped surrogates (PEP 383), and JSON stays valid.
    """
    return json.dumps(document, indent=2).encode("ascii") + b"\n"
