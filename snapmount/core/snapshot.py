"""What a snapshot is, as a value: the facts that its mount tells about it in snapshot.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..errors import StateError, UsageError
from . import units
from .blocksize import DEFAULT_BLOCK_SIZE
from .document import Reshaped, from_document
from .leftout import LeftOut
from .qcow2layout import CLUSTER_BYTES, Backing, default_cluster_bytes, smallest_cluster_bytes


@dataclass(frozen=True)
class Disk(Reshaped):
    """One disk of a snapshot."""

    ignores_unknown_keys = True

    name: str
    size_bytes: int
    format: str  # of the origin: raw, qcow2, ...
    origin: str
    allocated_bytes: int | None = None  # what its images took on the host then, backing files included, if known
    logical_block_size_bytes: int = DEFAULT_BLOCK_SIZE  # the guest's; partition tables count in it
    backing: Backing | None = None  # that the qcow2 file of its changes names
    full: str | None = None  # why all of it counts as changed, if changes since a checkpoint are asked for
    qcow2_cluster_size_bytes: int = CLUSTER_BYTES

    @property
    def file(self) -> str:
        """Its file in the mount."""
        return f"{self.name}.raw"

    @property
    def qcow2_file(self) -> str:
        """The same as a thin qcow2 image."""
        return f"{self.name}.qcow2"

    @property
    def lun_file(self) -> str:
        """What backs its LUN: a file in the mount that is not listed."""
        return f".{self.name}.lun"

    @property
    def dirty_file(self) -> str:
        """Its dirty extents, as text."""
        return f"{self.name}.dirty"

    @property
    def increment_file(self) -> str:
        """What has changed in it, as a thin qcow2 image."""
        return f"{self.name}.inc.qcow2"

    def with_clusters(self, asked_bytes: int | None) -> Disk:
        """The disk with the cluster size of its qcow2 file: the one that is asked for, else that for its size.

        Raises UsageError if QEMU's limits for tables do not let the disk have such small ones.
        """
        smallest = smallest_cluster_bytes(self.size_bytes)
        if asked_bytes is not None and asked_bytes < smallest:
            asked, needed = units.size(asked_bytes), f"{smallest // units.KIB}K"
            what = f"clusters of {asked} are too small for a qcow2 file of {self.name}, which has"
            raise UsageError(f"{what} {units.size(self.size_bytes)}", f"--cluster-size {needed}")
        chosen = default_cluster_bytes(self.size_bytes) if asked_bytes is None else asked_bytes
        return replace(self, qcow2_cluster_size_bytes=chosen)

    def of_size(self, size_bytes: int) -> Disk:
        """The disk when its true size is known."""
        clusters = max(self.qcow2_cluster_size_bytes, smallest_cluster_bytes(size_bytes))
        return replace(self, size_bytes=size_bytes, qcow2_cluster_size_bytes=clusters)

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        return written | {"file": self.file, "qcow2_file": self.qcow2_file}


@dataclass(frozen=True)
class DiskUrl(Reshaped):
    """A disk whose snapshot lies where this host cannot read it, and the URL that a storage hook gives for it."""

    ignores_unknown_keys = True

    name: str
    url: str

    @property
    def file(self) -> str:
        """Its file in the mount."""
        return f"{self.name}.url"

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        return written | {"file": self.file}


@dataclass(frozen=True)
class Nvram(Reshaped):
    """The variables of the VM's firmware in a snapshot: a copy of the file that QEMU keeps them in."""

    ignores_unknown_keys = True

    size_bytes: int
    format: str  # of the file: raw, qcow2 or json
    origin: str

    @property
    def file(self) -> str:
        """Its file in the mount."""
        return "nvram"

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        return written | {"file": self.file}


@dataclass(frozen=True)
class Snapshot(Reshaped):
    """The constant facts of a snapshot."""

    ignores_unknown_keys = True

    id: str
    vm_name: str
    vm_uuid: str
    created: datetime  # UTC
    source: str  # which source made it: 'pull'
    quiesced: bool
    since: str | None = field(default=None, kw_only=True)  # the checkpoint that dirty extents are told since, if any
    disks: tuple[Disk, ...]
    left_out: tuple[LeftOut, ...]
    urls: tuple[DiskUrl, ...] = ()  # disks that are shown by a URL alone
    checkpoint: str | None = None  # that was made at the same moment
    nvram: Nvram | None = None  # where the firmware keeps variables, and they could be copied

    @property
    def created_ns(self) -> int:
        """The moment in nanoseconds since 1970, exact to the microsecond: the mtime of all files in the mount."""
        seconds = int(self.created.replace(microsecond=0).timestamp())
        return seconds * 10**9 + self.created.microsecond * 1000

    @property
    def elsewhere(self) -> list[str]:
        """Where each of the disks is that this host cannot read, in words."""
        return [f"{each.name} is at {each.url}" for each in self.urls]

    def check_readable(self, remedy: str) -> None:
        """Raise StateError if this host can read none of its disks."""
        if not self.disks:
            what = f"{self.vm_name}: this host can read no disk of snapshot {self.id}"
            raise StateError(f"{what}: {', '.join(self.elsewhere)}", remedy)

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        """The shape of snapshot.json (see FILES in the man page)."""
        vm = {"name": written.pop("vm_name"), "uuid": written.pop("vm_uuid")}
        left_out = written.pop("left_out")
        return {"id": written.pop("id"), "vm": vm, **written, "left_out": left_out}

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        vm = from_document(_Vm, document["vm"], "vm")
        return document | {"vm_name": vm.name, "vm_uuid": vm.uuid, "nvram": document["nvram"]}


@dataclass(frozen=True)
class _Vm(Reshaped):
    """How snapshot.json names the VM."""

    ignores_unknown_keys = True
    name: str
    uuid: str
