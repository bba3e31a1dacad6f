"""JSON files of our own: written at once or not at all, readable by their owner alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .core.snapshot import dump
from .errors import StateError

T = TypeVar("T")


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
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as f:
        f.write(dump(document))
    new.replace(path)
