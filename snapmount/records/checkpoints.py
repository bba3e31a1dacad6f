"""The records of checkpoints, which outlive snapshots and reboots: for each VM a directory, in it a file for each
checkpoint, written before the checkpoint is made.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..core.checkpoint import Checkpoint, is_name
from ..errors import LeftoverError, SpaceError
from ..host import datadirectory
from . import documents


def of_vm(vm_uuid: str) -> list[Checkpoint]:
    """All of the VM, oldest first.  Raises StateError for a record that cannot be read."""
    found = [checkpoint for file in _files(vm_uuid) if (checkpoint := documents.read(file, Checkpoint))]
    return sorted(found, key=lambda each: (each.created, each.name))


def vms() -> list[str]:
    """The uuids of all VMs that have any."""
    return sorted(directory.name for directory in _parent().glob("*"))


def named(vm: str) -> Checkpoint | None:
    """The newest of a VM of that name or uuid; None if there is none.  Raises StateError."""
    found = [each for vm_uuid in vms() for each in of_vm(vm_uuid)]
    meant = [each for each in found if vm in (each.vm_name, each.vm_uuid)]
    return max(meant, key=lambda each: each.created, default=None)


def load(vm_uuid: str, name: str) -> Checkpoint | None:
    """The one of that name; None if there is none.  Raises StateError if its record cannot be read."""
    return documents.read(_path(vm_uuid, name), Checkpoint) if is_name(name) else None


def write(checkpoint: Checkpoint) -> None:
    """Write its record, on the disk.  Raises SpaceError."""
    file = path(checkpoint)
    try:
        datadirectory.make()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        documents.write(file, checkpoint, lasts=True)
    except OSError as error:
        _remove_empty(file.parent)
        raise SpaceError(f"the record {file} cannot be written: {error.strerror}") from error


def forget(checkpoint: Checkpoint) -> None:
    """Nothing is left of it.  Raises LeftoverError."""
    file = path(checkpoint)
    try:
        for each in (file, documents.unfinished(file)):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error
    _remove_empty(file.parent)


def path(checkpoint: Checkpoint) -> Path:
    """Of its record."""
    return _path(checkpoint.vm_uuid, checkpoint.name)


def _files(vm_uuid: str) -> list[Path]:
    return sorted(_directory(vm_uuid).glob("*.json"))


def _path(vm_uuid: str, name: str) -> Path:
    return _directory(vm_uuid) / f"{name}.json"


def _directory(vm_uuid: str) -> Path:
    return _parent() / vm_uuid


def _parent() -> Path:
    return datadirectory.path() / "checkpoints"


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
        directory.parent.rmdir()
    datadirectory.remove_if_empty()
