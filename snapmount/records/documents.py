"""JSON documents in files: how records are read and written, and the records of what is made on a snapshot."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from ..core.document import dump, from_document, to_document
from ..errors import LeftoverError, StateError
from ..host import descriptors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


MAX_BYTES = 4 << 20  # a record has some kilobytes


def read(path: Path, kind: type[T], check: Callable[[T], object] = lambda _: None) -> T | None:
    """The dataclass that the file holds; None if there is no such file.

    Raises StateError for a file that cannot be read, that another user may have written, that holds anything else, or
    for which `check` raises ValueError.
    """
    try:
        value = from_document(kind, json.loads(_bytes_of(path)))
        check(value)
        return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"the record {path} cannot be read: {error}") from error


def _bytes_of(path: Path) -> bytes:
    """Raises OSError, also for what is no regular file of ours, and for one that is too large to be one."""
    descriptor = descriptors.opened_file(path)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is no file of ours")
        if status.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        with open(descriptor, "rb", closefd=False) as f:
            return f.read(MAX_BYTES)
    finally:
        os.close(descriptor)


def write(path: Path, value: DataclassInstance, *, lasts: bool = False) -> None:
    """Write the dataclass, mode 0600, atomically; with `lasts` it is on the disk then.  Raises OSError."""
    write_bytes(path, dump(to_document(value)), lasts=lasts)


def write_bytes(path: Path, content: bytes, *, lasts: bool = False) -> None:
    """The same for any content."""
    new = unfinished(path)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as f:
            f.write(content)
            if lasts:  # before it has the name: else a power cut may leave an empty file of that name
                f.flush()
                os.fsync(f.fileno())
        new.replace(path)
        if lasts:
            sync_names(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def unfinished(path: Path) -> Path:
    """What is written before it gets that name; whoever was killed has left it."""
    return path.with_name(f"{path.name}.new")


def remove(path: Path) -> None:
    """Remove the file, and what was not finished of it; none is fine.  Raises LeftoverError."""
    try:
        for each in (path, unfinished(path)):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise LeftoverError(f"{error.filename} cannot be removed: {error.strerror}") from error


def sync_names(directory: Path) -> None:
    """Have the directory's names on the disk, if its file system can do that (EINVAL), else they come there later.

    Raises OSError.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


class Keyed(Protocol):
    """A dataclass that is one of several records of its kind."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str:
        """What tells it from the others: part of a file name."""

    @property
    def name(self) -> str:
        """What it is listed by."""


K = TypeVar("K", bound=Keyed)


@dataclass(frozen=True)
class Records(Generic[K]):
    """The records of one kind of what is made on a snapshot, in its runtime directory: `RUNTIME/ID/KIND/KEY.json`.

    Each is written before what it describes is made.
    """

    kind: str
    of: type[K]

    def load(self, directory: Path, key: str) -> K | None:
        """The one of that key, None if it is gone.  Raises StateError for a record that cannot be read."""
        return read(self._path(directory, key), self.of)

    def load_all(self, directory: Path) -> list[K]:
        """All of the snapshot, by name.  Raises StateError."""
        found, broken = self.sorted_out(directory)
        for error in broken.values():
            raise error
        return found

    def sorted_out(self, directory: Path) -> tuple[list[K], dict[str, StateError]]:
        """All of the snapshot that can be read, by name, and what is wrong with the others, by their keys."""
        found, broken = list[K](), dict[str, StateError]()
        for key in self._keys(directory):
            try:
                record = self.load(directory, key)
            except StateError as error:
                broken[key] = error
            else:
                found += [record] if record else []
        return sorted(found, key=lambda each: each.name), broken

    def _keys(self, directory: Path) -> list[str]:
        try:
            return [path.stem for path in map(Path, os.listdir(directory / self.kind)) if path.suffix == ".json"]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, directory: Path, record: K) -> None:
        """Write a record, atomically.  Raises OSError, if the snapshot is gone for instance."""
        path = self._path(directory, record.key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write(path, record)

    def forget(self, directory: Path, record: K) -> None:
        """Remove a record: nothing is left of what it describes."""
        self.forget_key(directory, record.key)

    def forget_key(self, directory: Path, key: str) -> None:
        """The same for one that cannot be read."""
        self._path(directory, key).unlink(missing_ok=True)

    def _path(self, directory: Path, key: str) -> Path:
        return directory / self.kind / f"{key}.json"
