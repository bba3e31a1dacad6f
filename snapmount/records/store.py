"""Runtime records: what was made in the kernel and in libvirt for each snapshot, written before it is made.

One directory a snapshot, `RUNTIME/ID/`, with `record.json`, `domain.xml`, `nvram`, `log` and
`lock`.  Whoever serves or undoes
a snapshot holds an exclusive flock(2) on `lock`, and has written its pid there; the kernel drops it with the process,
so a held lock is the proof of life.  The runtime directory is on a file system that a reboot empties; its mode is 0700.
Snapshots whose point in time survives a reboot have theirs in a directory that does so too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import names
from ..core.document import dump, to_document
from ..core.iscsi import Credentials
from ..core.lifecycle import State
from ..errors import LeftoverError, NotFoundError, SnapmountError, StateError
from ..host import datadirectory, locks, trees
from ..host.identity import Host
from . import documents
from .kept import Check
from .record import Record

log = logging.getLogger(__name__)


class Store:
    """The runtime directory."""

    def __init__(self, directory: Path, check: Check = lambda _: None, lasting: Path | None = None) -> None:
        """Each record that is read is handed to `check`, see sources/kinds.py.  `lasting` is the directory of those
        that survive a reboot; None: there are none.
        """
        self.directory = directory
        self.lasting = lasting
        self.check = check

    @classmethod
    def of_user(cls, check: Check) -> Store:
        """The calling user's: /run/snapmount for root, for others $XDG_RUNTIME_DIR/snapmount or, since homes may be
        shared, ~/.cache/snapmount-HOST.
        """
        host = Host.this().id
        lasting = datadirectory.path() / f"records-{host}"
        if os.geteuid() == 0:
            return cls(Path("/run/snapmount"), check, lasting)
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime:
            return cls(Path(runtime) / "snapmount", check, lasting)
        return cls(Path.home() / ".cache" / f"snapmount-{host}", check, lasting)

    def path(self, snapshot_id: str) -> Path:
        """The directory of a snapshot's record."""
        if self.lasting and (self.lasting / snapshot_id).exists():
            return self.lasting / snapshot_id
        return self.directory / snapshot_id

    def log(self, snapshot_id: str) -> Path:
        """The log of a snapshot's server."""
        return self.path(snapshot_id) / "log"

    def open_log(self, snapshot_id: str) -> int:
        """A descriptor of that log, to append to it.  Raises StateError."""
        try:
            return os.open(self.log(snapshot_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise locks.cannot_write(self.path(snapshot_id), error) from error

    def credentials(self, snapshot_id: str) -> Credentials | None:
        """Who may log in to the snapshot's iSCSI target; None if that was never written."""
        return documents.read(self.path(snapshot_id) / "credentials.json", Credentials)

    def definition(self, snapshot_id: str) -> str:
        """The VM's definition at the snapshot's moment.  Raises StateError."""
        path = self.path(snapshot_id) / "domain.xml"
        try:
            return path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise StateError(f"the VM's definition {path} cannot be read: {error.strerror}") from error

    def nvram(self, snapshot_id: str) -> bytes:
        """The firmware's variables at the snapshot's moment, where the record tells of them.  Raises StateError."""
        path = self.path(snapshot_id) / "nvram"
        try:
            return path.read_bytes()
        except OSError as error:
            raise StateError(f"the firmware's variables {path} cannot be read: {error.strerror}") from error

    def new_id(self) -> str:
        """An id that no snapshot of this directory has."""
        while True:
            snapshot_id = os.urandom(4).hex()
            if not self.path(snapshot_id).exists():
                return snapshot_id

    def load(self, snapshot_id: str) -> Record | None:
        """The record, None if there is none (any more).  Raises StateError for one that cannot be read."""
        return documents.read(self.path(snapshot_id) / "record.json", Record, self.check)

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
        found = []
        for directory in (self.directory, self.lasting):
            with contextlib.suppress(FileNotFoundError):
                found += os.listdir(directory) if directory else []
        return list(filter(names.is_snapshot_id, found))

    def find(self, word: str, connect: str | None = None) -> Record:
        """The snapshot that meant() tells, of a VM at that connection where one is given.

        Raises NotFoundError for none, StateError for more than one, and for one whose record cannot be read.
        """
        records, broken = self.load_all()
        found = [record for record in _meant(word, records) if connect in (None, record.connect)]
        if len(found) > 1:
            ids = ", ".join(record.id for record in found)
            raise StateError(
                f"{word!r} names {len(found)} snapshots: {ids}", names.command("snapmount", "show", found[0].id)
            )
        if broken and not any(record.is_meant_by(word) for record in found):
            self._check_readable(word)
        if found:
            return found[0]
        if broken:
            raise broken[0]
        remedy = "snapmount list" if records else None
        where = f" at {connect}" if connect else ""
        raise NotFoundError(f"there is no snapshot with the id, of the VM or at the mountpoint {word!r}{where}", remedy)

    def meant(self, word: str) -> list[Record]:
        """The snapshots with that id, of the VM of that name or uuid, or mounted there; if there are none, those
        whose id begins so.
        """
        return _meant(word, self.load_all()[0])

    def _check_readable(self, word: str) -> None:
        """Raise StateError if the word may be the id of a record that cannot be read."""
        if names.may_begin_snapshot_id(word):
            for snapshot_id in self.ids():
                if snapshot_id.startswith(word):
                    self.load(snapshot_id)

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
        """Raise StateError if the view is not readable, so that this cannot be done with it: 'booted'."""
        now = self.load(record.id)
        state = self.state(now) if now else State.DEAD
        if state is not State.ACTIVE:
            raise StateError(
                f"snapshot {record.id} of {record.snapshot.vm_name} cannot be {done}: its state is {state.value!r}",
                names.command("snapmount", "delete", record.id),
            )

    def lease(self, record: Record, *, lasts: bool = False) -> Lease:
        """Write a new snapshot's record and hold its lock; one that lasts, where a reboot leaves it.  Raises StateError
        if that cannot be written.
        """
        parent = self.directory
        if lasts and self.lasting:
            parent = self.lasting
        directory = parent / record.id
        try:
            locks.make_private(self.directory)
            if parent != self.directory:
                datadirectory.make()
                locks.make_private(parent)
            directory.mkdir(mode=0o700)
        except OSError as error:
            self.remove_if_empty()
            raise locks.cannot_write(directory, error) from error
        try:
            lease = Lease(self, record, locks.lock(directory, os.O_CREAT))
            documents.write(directory / "record.json", record, lasts=lease.lasts)
            if lease.lasts:
                documents.sync_names(parent)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            self.remove_if_empty()
            raise locks.cannot_write(directory, error) from error
        return lease

    @contextlib.contextmanager
    def taken_over(self, snapshot_id: str) -> Iterator[Lease | None]:
        """Hold the lock of a snapshot that no process serves; None if it is gone already or somebody else was
        faster.
        """
        try:
            lock = locks.lock(self.path(snapshot_id))
        except (FileNotFoundError, NotADirectoryError, BlockingIOError):
            yield None
            return
        try:
            record = self.load(snapshot_id)
            yield Lease(self, record, lock) if record else None
        finally:
            os.close(lock)

    def remove_if_empty(self) -> None:
        """Remove the runtime directory where no snapshot is left in it, and nobody is about to make one; and the other
        one, if it is empty.
        """
        if self.lasting:
            with contextlib.suppress(OSError):
                self.lasting.rmdir()
                datadirectory.remove_if_empty()
        with contextlib.suppress(OSError):
            descriptor = locks.locked(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.directory.rmdir()
            finally:
                os.close(descriptor)


def _meant(word: str, records: Sequence[Record]) -> list[Record]:
    exactly = [record for record in records if record.is_meant_by(word)]
    if exactly or not names.may_begin_snapshot_id(word):
        return exactly
    return [record for record in records if record.id.startswith(word)]


class Lease:
    """A record whose lock this process holds: it alone may change it."""

    def __init__(self, store: Store, record: Record, lock: int) -> None:
        self.store = store
        self.record = record
        self._lock = lock

    @property
    def directory(self) -> Path:
        """The snapshot's runtime directory."""
        return self.store.path(self.record.id)

    @property
    def lasts(self) -> bool:
        """Whether a restart of the host leaves the record, also a power cut: what is written is on the disk then."""
        return self.directory.parent == self.store.lasting

    def release(self) -> None:
        """Let go of the lock; only once, at the end."""
        os.close(self._lock)

    def update(self, **changes: Any) -> None:
        """Change the record, on disk too, atomically.  Raises StateError, and ValueError for a state that may not
        follow (core/lifecycle.py).
        """
        if "state" in changes:
            self.record.state.check_next(changes["state"])
        self.record = replace(self.record, **changes)
        self._write("record.json", dump(to_document(self.record)))

    def note(self, state: State, why: str | None = None) -> None:
        """Note the state, and why, for list and show: what cannot be written must not keep anything from being done,
        and what comes too late to be said changes nothing.
        """
        try:
            self.update(**self.record.noted(state, why))
        except StateError as error:
            log.error("%s", error.message)
        except ValueError as error:
            log.debug("%s: %s", why or state.value, error)

    def write_credentials(self, credentials: Credentials) -> None:
        """Write down who may log in, in a file apart: a record can be shown.  Raises StateError."""
        self._write("credentials.json", dump(to_document(credentials)))

    def write_definition(self, domain_xml: str) -> None:
        """Write down the VM's definition, for whoever shows the snapshot.  Raises StateError."""
        self._write("domain.xml", domain_xml.encode("utf-8", "surrogateescape"))

    def write_nvram(self, content: bytes) -> None:
        """Write down the firmware's variables, for whoever shows the snapshot.  Raises StateError."""
        self._write("nvram", content)

    def _write(self, name: str, content: bytes) -> None:
        try:
            documents.write_bytes(self.directory / name, content, lasts=self.lasts)
        except OSError as error:
            raise locks.cannot_write(self.directory, error) from error

    def forget(self) -> None:
        """Remove the record: nothing is left of the snapshot.  Raises LeftoverError."""
        try:
            trees.remove(self.directory)
        except OSError as error:
            raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error
        self.store.remove_if_empty()
