"""Scratch VMs, as they are recorded and shown.  launch.py makes them, tending.py ends them.

The record of one lies in its snapshot's runtime directory, `RUNTIME/ID/scratch-vm/UUID.json`, and is written before any
part of it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import names
from ..core.document import to_document
from ..core.leftout import LeftOut
from ..errors import StateError
from ..host import glances, qemu
from ..host.processes import Process
from ..records import documents


@dataclass(frozen=True)
class ScratchVm:
    """A scratch VM, from before it is made."""

    name: str
    uuid: str
    accelerator: str  # <domain type=...>: kvm or qemu
    overlays: str  # directory of its disks' overlays, its NVRAM and its console's log, its alone
    is_kept: bool  # defined persistently: it is gone when libvirt knows it no more
    process: Process  # the command that makes it; once it has been started, its QEMU
    is_started: bool = False
    pid_file: str | None = None  # where libvirt keeps QEMU's process id, once it has been started
    left_out: tuple[LeftOut, ...] = ()  # devices of the original that it does not have
    notes: tuple[str, ...] = ()  # what else is not as in the original
    has_console: bool = True

    @property
    def key(self) -> str:
        return self.uuid

    @property
    def console_log(self) -> str:
        """What the guest writes to its first console, where it has one."""
        return f"{self.overlays}/console.log"

    @property
    def nvram(self) -> str:
        """The variables of its firmware, where it has such."""
        return f"{self.overlays}/nvram.fd"

    def overlay(self, disk: str) -> str:
        """The overlay of a disk, qcow2."""
        return f"{self.overlays}/{disk}.qcow2"

    def document(self) -> dict[str, Any]:
        """Its JSON shape; see JSON in the man page."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "state": self.state,
            "accelerator": "kvm" if self.accelerator == "kvm" else "tcg",
            "kept": self.is_kept,
            "overlay_directory": self.overlays,
            "overlay_bytes": glances.used_bytes(Path(self.overlays)),
            "console_log": self.console_log if self.has_console else None,
            "left_out": [to_document(each) for each in self.left_out],
            "notes": list(self.notes),
        }

    @property
    def state(self) -> str:
        """starting, running, ending, or shut off for one that is kept."""
        if self.process.runs():
            return "running" if self.is_started else "starting"
        if not self.is_kept:
            return "ending"
        return "running" if self._runs_again() else "shut off"

    def _runs_again(self) -> bool:
        """Whether one that is kept has been started again, by others, who may have renamed it before."""
        return self.pid_file is not None and qemu.find(self.uuid, Path(self.pid_file).parent) is not None


_RECORDS = documents.Records("scratch-vm", ScratchVm)
load, write, forget, forget_unreadable = _RECORDS.load, _RECORDS.write, _RECORDS.forget, _RECORDS.forget_key


def load_all(directory: Path) -> list[ScratchVm]:
    """All scratch VMs of the snapshot whose records can be read, by name."""
    return _RECORDS.sorted_out(directory)[0]


def unreadable(directory: Path) -> dict[str, StateError]:
    """What is wrong with the records that cannot be read, by the uuid of each scratch VM."""
    return {uuid: error for uuid, error in _RECORDS.sorted_out(directory)[1].items() if names.is_uuid(uuid)}


def overlays_name(snapshot_id: str, uuid: str) -> str:
    """The name of the directory of its overlays."""
    return f"snapmount-{snapshot_id}-vm-{uuid[:8]}"
