"""What outlives a reboot: for each directory that QEMU is given, a small file that says whose it is.

Runtime records are gone after a reboot, scratch files are not.  So for each directory `snapmount-...`, wherever it is,
a file of the same name with `.json` lies in the default parent of scratch directories: written before the directory is
made, and removed when it is gone.  What no file here names is not ours to remove, and neither is what it says another
host has made: file servers may show this directory to several.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from ..core import names
from ..core.document import Reshaped, from_document
from ..errors import SpaceError, StateError
from ..host import blocking, datadirectory, mounts
from ..host.identity import Host
from ..host.processes import boot_id
from . import documents
from .kept import Check, Kept
from .record import Record
from .store import Store

VERSION = 3
WRITE_S = 30.0  # a disk may have much else to write first
UNFINISHED_S = 600.0  # of another host, that may use the directory too, the clock may differ
NAME = re.compile(r"snapmount-([0-9a-f]{8})(-vm-[0-9a-f]{8})?")


@dataclass(frozen=True)
class Entry(Reshaped):
    """A directory, and the snapshot it belongs to."""

    directory: str  # its name is NAME
    mount: str  # the mountpoint of its file system, which may not be mounted yet after a restart
    owner_uid: int  # QEMU's user, whose it is
    runtime: str  # directory of the records, where the snapshot's is
    snapshot: str  # id
    vm_name: str
    vm_uuid: str
    connect: str
    mount_source: str
    source: Mapping[str, Any]  # as in the record: {"kind": ..., ...}
    boot_id: str
    host: Host  # that made it
    scratch_vm: str | None = None  # uuid of the scratch VM whose overlays are there

    def __post_init__(self) -> None:
        """Raises ValueError for a directory that is not named as one of that snapshot."""
        match = NAME.fullmatch(Path(self.directory).name)
        is_plain = os.path.isabs(self.directory) and os.path.normpath(self.directory) == self.directory
        if not match or match[1] != self.snapshot or not is_plain:
            raise ValueError(f"{self.directory!r} is no directory of snapshot {self.snapshot!r}")
        if self.scratch_vm is not None and not names.is_uuid(self.scratch_vm):
            raise ValueError(f"{self.scratch_vm!r} is no uuid")

    @property
    def kept(self) -> Kept:
        """The snapshot, as far as undoing it needs."""
        return Kept(self.snapshot, self.vm_name, self.vm_uuid, self.connect, self.source)

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        return {"version": VERSION, **written}

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        return upgraded(document)


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry of this version, or of the one before it that was released.  Raises KeyError or ValueError
    for any other.
    """
    fields = dict(document)
    version = fields.pop("version")
    if version == 2:  # the fields of the one source that there was, of which some were left out
        devices = [["", device] for device in from_document(tuple[str, ...], fields.pop("devices"), "devices")]
        policy = {"limit_bytes": None, "is_reserved": False, "devices": devices, "place": None}
        socket, scratch = fields.pop("socket"), fields["directory"]
        fields["source"] = {"kind": "pull", "socket": socket, "scratch": scratch, "policy": policy}
    elif version != VERSION:
        raise ValueError("it was written by another version of snapmount, which this one does not know")
    return fields


def path(directory: str) -> Path:
    """The file that says whose the directory is."""
    return datadirectory.path() / f"{Path(directory).name}.json"


async def write(record: Record, store: Store, directory: str, owner_uid: int, scratch_vm: str | None = None) -> None:
    """Write down, on the disk, that this directory is about to be made for the snapshot, or for the scratch VM of that
    uuid on it.  Raises SpaceError.
    """
    what = f"{path(directory)}, which tells whose {directory} is,"
    try:
        with trio.CancelScope(shield=True):  # what is written later, by a thread left behind, nobody would remove
            await blocking.call(WRITE_S, _write, record, store, directory, owner_uid, scratch_vm)
    except trio.TooSlowError:
        raise SpaceError(f"{what} has not been written within {WRITE_S:g} s") from None
    except OSError as error:
        raise SpaceError(f"{what} cannot be written: {error.strerror}") from error


def _write(record: Record, store: Store, directory: str, owner_uid: int, scratch_vm: str | None) -> None:
    snapshot = record.snapshot
    file = path(directory)
    try:
        datadirectory.make()
        entry = Entry(
            directory=directory,
            mount=mount_of(directory),
            owner_uid=owner_uid,
            runtime=str(store.path(snapshot.id).parent),
            snapshot=snapshot.id,
            vm_name=snapshot.vm_name,
            vm_uuid=snapshot.vm_uuid,
            connect=record.connect,
            mount_source=record.mount_source,
            source=record.source,
            boot_id=boot_id(),
            host=Host.this(),
            scratch_vm=scratch_vm,
        )
        documents.write(file, entry, lasts=True)
    except OSError:
        datadirectory.remove_if_empty()
        raise


def mount_of(directory: str) -> str:
    """Where the file system is mounted that the directory lies on, or would.  May block, as that does.  Raises
    OSError.
    """
    mount = mounts.holding(os.path.realpath(os.path.dirname(directory)), mounts.current())
    return mount.path if mount else "/"


def load_all(check: Check = lambda _: None) -> tuple[list[Entry], dict[Path, StateError]]:
    """All entries, by the directories' names, and an error for each file that cannot be read, or whose source `check`
    does not know.
    """
    entries: list[Entry] = []
    broken: dict[Path, StateError] = {}
    for file in sorted(datadirectory.path().glob("snapmount-*.json")):
        try:
            entry = documents.read(file, Entry, check)
            if entry and path(entry.directory) != file:
                raise StateError(f"the record {file} is of another directory, {entry.directory}")
        except StateError as error:
            broken[file] = error
        else:
            entries += [entry] if entry else []
    return entries, broken


def unfinished() -> Iterator[tuple[Path, str]]:
    """Files that nobody writes any more and that have not got their names, with the ids of their snapshots: a power cut
    leaves such.  What they were to name had not been made then.
    """
    for file in sorted(datadirectory.path().glob("snapmount-*.json.new")):
        match = NAME.fullmatch(file.name.partition(".")[0])
        with contextlib.suppress(FileNotFoundError):
            if match and time.time() - file.lstat().st_mtime > UNFINISHED_S:
                yield file, match[1]


def forget(directory: str) -> None:
    """The directory is gone.  Raises LeftoverError."""
    documents.remove(path(directory))
    datadirectory.remove_if_empty()
