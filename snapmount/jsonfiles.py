"""Files of our own, JSON documents most of them: written at once or not at all, readable by their owner alone; and how
records of one kind are kept beside a snapshot's."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from .core.snapshot import dump
from .errors import StateError

T = TypeVar("T")

NEW = ".new"  # ends the name of a file that is being written


def read(path: Path, parse: Callable[[Any], T]) -> T | None:
    """What `parse` makes of the document; None where there is no such file.

    Raises StateError for a file that cannot be read, or of which `parse` makes nothing.
    """
    try:
        return parse(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StateError(f"the record {path} cannot be read: {error}") from error


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document, mode 0600, atomically.  Raises OSError."""
    write_bytes(path, dump(document))


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file, mode 0600, atomically.  Raises OSError."""
    new = path.with_name(f"{path.name}{NEW}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as f:
            f.write(content)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


class Kept(Protocol):
    """What can be kept on a shelf."""

    @property
    def key(self) -> str:
        """What tells it from others of its kind: part of a file name."""

    @property
    def name(self) -> str:
        """By which it is listed."""

    def to_json(self) -> dict[str, Any]:
        """The shape of its record."""


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True)
class Shelf(Generic[K]):
    """Records of one kind that belong to a snapshot, in its runtime directory: `RUNTIME/ID/KIND/KEY.json`.

    Each is written before what it describes is made.
    """

    kind: str
    parse: Callable[[Any], K]

    def load(self, directory: Path, key: str) -> K | None:
        """The one of that key, None where it is gone.  Raises StateError for a record that cannot be read."""
        return read(self._path(directory, key), self.parse)

    def load_all(self, directory: Path) -> list[K]:
        """All of the snapshot, by name.  Raises StateError."""
        try:
            entries = [Path(entry) for entry in os.scandir(directory / self.kind)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = [self.load(directory, path.stem) for path in entries if path.suffix == ".json"]
        return sorted((each for each in found if each), key=lambda each: each.name)

    def write(self, directory: Path, kept: K) -> None:
        """Write a record, atomically.  Raises OSError, where the snapshot is gone for instance."""
        path = self._path(directory, kept.key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write(path, kept.to_json())

    def forget(self, directory: Path, kept: K) -> None:
        """Remove a record: nothing is left of what it describes."""
        self._path(directory, kept.key).unlink(missing_ok=True)

    def _path(self, directory: Path, key: str) -> Path:
        return directory / self.kind / f"{key}.json"
