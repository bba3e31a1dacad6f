"""The records of checkpoints, which outlive snapshots and reboots: for each VM a directory, in it a file for each
checkpoint, written before the checkpoint is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import trio

from ..core.checkpoint import Checkpoint, is_name
from ..errors import LeftoverError, SpaceError, StateError
from ..host import blocking, datadirectory
from . import documents

T = TypeVar("T")

DISK_S = 30.0


async def on_disk(function: Callable[..., T], *args: object) -> T:
    """What one of the functions below returns, by a deadline: on a disk that may have much else to do.  Raises
    LeftoverError at it.
    """
    place = datadirectory.path()
    return await blocking.on_path(place, DISK_S, function, *args, done="read or written", kind=LeftoverError)


async def keep(checkpoint: Checkpoint) -> None:
    """write() it, which is waited for also where we are cancelled: what a thread left behind would write later, nobody
    would undo.  Raises SpaceError, and LeftoverError at the deadline.
    """
    with trio.CancelScope(shield=True):
        await on_disk(write, checkpoint)


def of_vm(vm_uuid: str) -> list[Checkpoint]:
    """All of the VM, oldest first.  Raises StateError for a record that cannot be read."""
    found = [checkpoint for file in _files(vm_uuid) if (checkpoint := documents.read(file, Checkpoint))]
    return sorted(found, key=_age)


def readable(vm_uuid: str) -> list[Checkpoint]:
    """The same, without those whose records cannot be read."""
    found = []
    for file in _files(vm_uuid):
        with contextlib.suppress(StateError):
            checkpoint = documents.read(file, Checkpoint)
            found += [checkpoint] if checkpoint else []
    return sorted(found, key=_age)


def _age(checkpoint: Checkpoint) -> tuple[datetime, str]:
    return checkpoint.created, checkpoint.name


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
    documents.remove(file)
    _remove_empty(file.parent)


def path(checkpoint: Checkpoint) -> Path:
    """Of its record."""
    return _path(checkpoint.vm_uuid, checkpoint.name)


def are_any(vm_uuid: str) -> bool:
    """Whether there are records of the VM, readable or not."""
    return _directory(vm_uuid).exists()


def locked(vm_uuid: str) -> int | None:
    """A descriptor of the lock of who watches over a VM's checkpoints, which is the directory of their records; None if
    somebody else has it, or there are none.  Raises OSError.
    """
    descriptor = opened(vm_uuid)
    if descriptor is None or not is_locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def are_watched(vm_uuid: str) -> bool:
    """Whether somebody has that lock.  Raises OSError."""
    descriptor = opened(vm_uuid)
    if descriptor is None:
        return False
    try:
        return is_locked(descriptor)
    finally:
        os.close(descriptor)


def opened(vm_uuid: str) -> int | None:
    """A descriptor of the directory of a VM's records; None if it has none.  Raises OSError."""
    try:
        return os.open(_directory(vm_uuid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def is_locked(descriptor: int) -> bool:
    """Whether somebody else has its lock; else the descriptor has it from now on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


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
