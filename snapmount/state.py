"""Runtime records: what was made in the kernel and in libvirt for each snapshot, written before it is made.

One directory a snapshot, `RUNTIME/ID/`, with `record.json`, `domain.xml`, `log` and `lock`.  Whoever serves or undoes
a snapshot holds an exclusive flock(2) on `lock`, and has written its pid there; the kernel drops it with the process,
so a held lock is the proof of life.  The runtime directory is on a file system that a reboot empties; its mode is 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from . import jsonfiles
from .core import names
from .core.iscsi import Credentials, Target
from .core.snapshot import Snapshot, dump
from .core.space import DEFAULT_TERMS, Terms
from .errors import LeftoverError, NotFoundError, SnapmountError, StateError
from .processes import Process

log = logging.getLogger(__name__)

VERSION = 4


class State(Enum):
    """The state of a snapshot."""

    STARTING = "starting"  # being made
    ACTIVE = "active"  # the view is readable
    LOST = "lost"  # the point in time can no longer be served: reads fail with EIO
    GAVE_UP = "gave up"  # the same, by ourselves: before the scratch space ran out
    ENDING = "ending"  # being undone
    LEFTOVER = "leftover"  # something could not be undone
    DEAD = "dead"  # never recorded: the process that served it is gone


@dataclass(frozen=True)
class Publication:
    """What is, or may be, published over iSCSI."""

    backend: str  # of publish.iscsi: 'lio' or 'tgt'
    target: Target

    def to_json(self) -> dict[str, Any]:
        return {"backend": self.backend, "target": self.target.document()}

    @classmethod
    def from_json(cls, document: Any) -> Publication:
        """Raises KeyError, TypeError or ValueError for another shape."""
        return cls(document["backend"], Target.from_document(document["target"]))


@dataclass(frozen=True)
class Record:
    """All that must be known to show a snapshot, and to undo it without the process that made it."""

    snapshot: Snapshot
    connect: str  # libvirt connection URI
    mountpoint: str  # absolute, symbolic links resolved
    mount_source: str  # the source in /proc/self/mountinfo: the proof that a mount is ours
    socket: str  # of QEMU's NBD server: the proof that a backup job is ours
    scratch: str  # directory of the scratch files, ours alone
    server: Process
    state: State = State.STARTING
    terms: Terms = DEFAULT_TERMS  # how it uses scratch space
    reason: str | None = None  # for LOST, GAVE_UP and LEFTOVER
    frozen: bool = False  # the guest's file systems may be frozen: they must be thawed
    is_hidden: bool = False  # nobody asked for the mount: it is for LUNs or scratch VMs alone
    is_for_boot: bool = False  # taken for scratch VMs: it ends with the last of them
    publication: Publication | None = None
    read_timeout_s: float = 30.0
    expires_s: float | None = None  # by CLOCK_MONOTONIC, which nobody sets and which lasts as long as the record

    @property
    def id(self) -> str:
        return self.snapshot.id

    def is_meant_by(self, word: str) -> bool:
        """Whether the word is its id, the name or uuid of its VM, or its mountpoint."""
        return word in (self.id, self.snapshot.vm_name, self.snapshot.vm_uuid) or (
            self.mountpoint == os.path.realpath(word)
        )

    @property
    def left_s(self) -> float | None:
        """How long it has until it expires."""
        return None if self.expires_s is None else max(0.0, self.expires_s - time.monotonic())

    @property
    def expires(self) -> datetime | None:
        """When that will be, as the clock goes now."""
        return None if self.left_s is None else datetime.now(UTC) + timedelta(seconds=self.left_s)

    @property
    def whereabouts(self) -> str:
        """Where the view is, in words that follow a comma."""
        where = [] if self.is_hidden else [f"mounted at {self.mountpoint}"]
        where += [f"published over iSCSI by {self.publication.backend}"] if self.publication else []
        where += ["shown to scratch VMs"] if self.is_for_boot else []
        return " and ".join(where) or "not shown yet"

    def export_uri(self, disk: str) -> str:
        """The NBD URI of a disk's export (NBD URI specification, "nbd+unix")."""
        return f"nbd+unix:///{disk}?socket={self.socket}"

    def to_json(self) -> dict[str, Any]:
        """The shape of record.json."""
        return {
            "version": VERSION,
            "snapshot": self.snapshot.document(),
            "connect": self.connect,
            "mountpoint": self.mountpoint,
            "mount_source": self.mount_source,
            "socket": self.socket,
            "scratch": self.scratch,
            "server": asdict(self.server),
            "state": self.state.value,
            "terms": self.terms.to_json(),
            "reason": self.reason,
            "frozen": self.frozen,
            "is_hidden": self.is_hidden,
            "is_for_boot": self.is_for_boot,
            "publication": self.publication and self.publication.to_json(),
            "read_timeout_s": self.read_timeout_s,
            "expires_s": self.expires_s,
        }

    @classmethod
    def from_json(cls, document: Any) -> Record:
        """The record of that shape.  Raises KeyError, TypeError or ValueError for any other."""
        fields = dict(document)
        if fields.pop("version") != VERSION:
            raise ValueError("it was written by another version of snapmount")
        fields["snapshot"] = Snapshot.from_document(fields["snapshot"])
        fields["server"] = Process(**fields["server"])
        fields["state"] = State(fields["state"])
        fields["terms"] = Terms.from_json(fields["terms"])
        fields["publication"] = fields["publication"] and Publication.from_json(fields["publication"])
        return cls(**fields)


class Store:
    """The runtime directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of_user(cls) -> Store:
        """The calling user's: /run/snapmount for root, $XDG_RUNTIME_DIR/snapmount or ~/.cache/snapmount for others."""
        if os.geteuid() == 0:
            return cls(Path("/run/snapmount"))
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        return cls((Path(runtime) if runtime else Path.home() / ".cache") / "snapmount")

    def path(self, snapshot_id: str) -> Path:
        """The directory of a snapshot's record."""
        return self.directory / snapshot_id

    def log(self, snapshot_id: str) -> Path:
        """The log of a snapshot's server."""
        return self.path(snapshot_id) / "log"

    def credentials(self, snapshot_id: str) -> Credentials | None:
        """Who may log in to the snapshot's iSCSI target; None where that was never written."""
        return jsonfiles.read(self.path(snapshot_id) / "credentials.json", lambda fields: Credentials(**fields))

    def definition(self, snapshot_id: str) -> str:
        """The VM's definition at the snapshot's moment.  Raises StateError."""
        path = self.path(snapshot_id) / "domain.xml"
        try:
            return path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise StateError(f"the VM's definition {path} cannot be read: {error.strerror}") from error

    def new_id(self) -> str:
        """An id that no snapshot of this directory has."""
        while True:
            snapshot_id = secrets.token_hex(4)
            if not self.path(snapshot_id).exists():
                return snapshot_id

    def load(self, snapshot_id: str) -> Record | None:
        """The record, None where there is none (any more).  Raises StateError for one that cannot be read."""
        return jsonfiles.read(self.path(snapshot_id) / "record.json", Record.from_json)

    def load_all(self) -> tuple[list[Record], list[SnapmountError]]:
        """All records, oldest first, and an error for each that cannot be read."""
        records: list[Record] = []
        broken: list[SnapmountError] = []
        for snapshot_id in self.ids():
            try:
                record = self.load(snapshot_id)
            except StateError as error:
                broken.append(error)
            else:
                if record and (self.is_served(snapshot_id) or self.load(snapshot_id)):
                    records.append(record)  # and not one whose server has just ended it
        return sorted(records, key=lambda record: record.snapshot.created), broken

    def ids(self) -> list[str]:
        """The ids of all snapshots, and of those that are about to be or have just been one."""
        try:
            return [entry.name for entry in os.scandir(self.directory) if names.is_snapshot_id(entry.name)]
        except FileNotFoundError:
            return []

    def find(self, word: str) -> Record:
        """The snapshot with that id, of the VM of that name or uuid, or mounted there.

        Raises NotFoundError for none, StateError for more than one.
        """
        records, broken = self.load_all()
        found = [record for record in records if record.is_meant_by(word)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(record.id for record in found)
            raise StateError(
                f"{word!r} names {len(found)} snapshots: {ids}", names.command("snapmount", "show", found[0].id)
            )
        if broken:
            raise broken[0]
        remedy = "snapmount list" if records else None
        raise NotFoundError(f"there is no snapshot with the id, of the VM or at the mountpoint {word!r}", remedy)

    def is_served(self, snapshot_id: str) -> bool:
        """Whether a process serves (or undoes) the snapshot: whether its lock is held."""
        try:
            with (self.path(snapshot_id) / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        return False

    def state(self, record: Record) -> State:
        """The state to show: what the record says, or DEAD where no process stands behind it, or only one that is about
        to.
        """
        if record.state is State.LEFTOVER:
            return record.state
        is_served = self.is_served(record.id) and (record.state is not State.ACTIVE or record.server.runs())
        return record.state if is_served else State.DEAD

    def holder(self, snapshot_id: str) -> str:
        """Who serves or undoes it, in words."""
        try:
            return f"process {int((self.path(snapshot_id) / 'lock').read_text())}"
        except (OSError, ValueError):
            return "another process"

    def check_active(self, record: Record, done: str) -> None:
        """Raise StateError where the view is not readable, so that this cannot be done with it: 'booted'."""
        now = self.load(record.id)
        state = self.state(now) if now else State.DEAD
        if state is not State.ACTIVE:
            raise StateError(
                f"snapshot {record.id} of {record.snapshot.vm_name} cannot be {done}: it is {state.value}",
                names.command("snapmount", "delete", record.id),
            )

    def claim(self, record: Record) -> Claim:
        """Write a new snapshot's record and hold its lock.  Raises StateError where that cannot be written."""
        directory = self.path(record.id)
        try:
            make_private(self.directory)
            directory.mkdir(mode=0o700)
        except OSError as error:
            self.remove_if_empty()
            raise cannot_write(directory, error) from error
        try:
            claim = Claim(self, record, _lock(directory, os.O_CREAT))
            jsonfiles.write(directory / "record.json", record.to_json())
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            self.remove_if_empty()
            raise cannot_write(directory, error) from error
        return claim

    @contextlib.contextmanager
    def taken_over(self, snapshot_id: str) -> Iterator[Claim | None]:
        """Hold the lock of a snapshot that no process serves; None where it is gone already or somebody else was
        faster.
        """
        try:
            lock = _lock(self.path(snapshot_id))
        except (FileNotFoundError, NotADirectoryError, BlockingIOError):
            yield None
            return
        try:
            record = self.load(snapshot_id)
            yield Claim(self, record, lock) if record else None
        finally:
            os.close(lock)

    def remove_if_empty(self) -> None:
        """Remove the runtime directory where no snapshot is left in it, and nobody is about to make one."""
        with contextlib.suppress(OSError):
            descriptor = locked(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.directory.rmdir()
            finally:
                os.close(descriptor)


class Claim:
    """A record whose lock this process holds: it alone may change it."""

    def __init__(self, store: Store, record: Record, lock: int) -> None:
        self.store = store
        self.record = record
        self._lock = lock

    @property
    def directory(self) -> Path:
        """The snapshot's runtime directory."""
        return self.store.path(self.record.id)

    def update(self, **changes: Any) -> None:
        """Change the record, on disk too, atomically.  Raises StateError."""
        self.record = replace(self.record, **changes)
        try:
            jsonfiles.write(self.directory / "record.json", self.record.to_json())
        except OSError as error:
            raise cannot_write(self.directory, error) from error

    def note(self, state: State, reason: str | None = None) -> None:
        """Note the state, for list and show; that it cannot be written must not keep anything from being done."""
        try:
            self.update(state=state, reason=reason)
        except StateError as error:
            log.error("%s", error.message)

    def write_credentials(self, credentials: Credentials) -> None:
        """Write down who may log in, in a file apart: a record can be shown.  Raises StateError."""
        self._write("credentials.json", dump(asdict(credentials)))

    def write_definition(self, domain_xml: str) -> None:
        """Write down the VM's definition, for whoever shows the snapshot.  Raises StateError."""
        self._write("domain.xml", domain_xml.encode("utf-8", "surrogateescape"))

    def _write(self, name: str, content: bytes) -> None:
        try:
            jsonfiles.write_bytes(self.directory / name, content)
        except OSError as error:
            raise cannot_write(self.directory, error) from error

    def forget(self) -> None:
        """Remove the record: nothing is left of the snapshot.  Raises LeftoverError."""
        try:
            while os.path.lexists(self.directory):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self.directory)
        except OSError as error:
            raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error
        self.store.remove_if_empty()


def cannot_write(directory: Path, error: OSError) -> StateError:
    """The error for a directory of ours that cannot be written."""
    return StateError(f"cannot write the runtime record {directory}: {error.strerror}")


def make_private(directory: Path) -> None:
    """Make the directory, where there is none, and close it to others.  Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.geteuid() or not directory.is_dir() or directory.is_symlink():
        raise PermissionError(1, "it belongs to another user", str(directory))
    directory.chmod(0o700)


def _lock(directory: Path, flags: int = 0) -> int:
    """The lock of a snapshot, held by us."""
    descriptor = locked(directory / "lock", os.O_RDWR | flags)
    with contextlib.suppress(OSError):  # where there is no room, nobody learns who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def locked(path: Path, flags: int) -> int:
    """A descriptor with the exclusive flock(2) of the file.  Raises BlockingIOError where somebody else has it."""
    descriptor = os.open(path, os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
