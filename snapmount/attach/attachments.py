"""Disks of a snapshot that are plugged into other VMs, as they are recorded and shown.  hotplug.py plugs them.

The record of one lies in its snapshot's runtime directory, `RUNTIME/ID/attached/UUID.DISK.json`, and is written before
the disk is plugged in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import helperdisk
from ..errors import StateError
from ..host.processes import Process
from ..records import documents


@dataclass(frozen=True)
class Attachment:
    """A disk of a snapshot in a VM, its helper, for this run of that VM."""

    snapshot: str  # its id
    disk: str  # the snapshot's name for it
    vm_name: str
    vm_uuid: str
    qemu: Process  # of the helper: when it ends, so does the attachment
    bus: str
    target: str  # libvirt's name for it in the helper
    is_made: bool = False

    @property
    def key(self) -> str:
        return f"{self.vm_uuid}.{self.disk}"

    @property
    def name(self) -> str:
        return f"{self.vm_name} {self.target}"

    @property
    def alias(self) -> str:
        """What tells the device from all others of the helper."""
        return helperdisk.alias(self.snapshot, self.disk)

    @property
    def serial(self) -> str:
        """By which the guest knows it."""
        return helperdisk.serial(self.snapshot, self.disk)

    @property
    def device(self) -> str:
        """Its device file in a Linux guest."""
        return helperdisk.device(self.bus, self.serial)

    @property
    def state(self) -> str:
        """attaching or attached."""
        return "attached" if self.is_made else "attaching"

    def document(self) -> dict[str, Any]:
        """Its JSON shape; see JSON in the man page."""
        return {
            "vm": {"name": self.vm_name, "uuid": self.vm_uuid},
            "state": self.state,
            "disk": self.disk,
            "bus": self.bus,
            "target": self.target,
            "serial": self.serial,
            "device": self.device,
        }


RECORDS = documents.Records("attached", Attachment)


def unreadable(directory: Path) -> dict[str, StateError]:
    """What is wrong with the records that cannot be read, by their keys."""
    return RECORDS.sorted_out(directory)[1]


def current(directory: Path) -> list[Attachment]:
    """Those of the snapshot with that runtime directory whose helper has not ended, where their records can
    be read.
    """
    return [each for each in RECORDS.sorted_out(directory)[0] if each.qemu.runs()]
