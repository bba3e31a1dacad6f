"""What snapmount and a hook say to each other: a JSON object on the hook's standard input, and one on its output.

STORAGE HOOKS in the man page documents these; test_hookman.py holds both together.  A question has a key for each of
its fields.  An answer may leave out what has a default, and must not have other keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..core.document import DocumentError, from_document
from ..core.extents import HOLE, ZERO, Extent
from ..core.user import User
from .driver import Room

T = TypeVar("T")

VERSION = 1  # of the questions and answers
HOLDS_S, HOLDS_MAX_S = 5.0, 60.0
FROZEN_MAX = 4096  # characters; PATH_MAX

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")  # RFC 3986: a scheme; ASCII without blanks


class Verb(Enum):
    """What a hook is asked to do: its one argument."""

    PLAN = "plan"
    TAKE = "take"
    STATUS = "status"
    CHANGED = "changed"
    DELETE = "delete"


# -- questions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What every verb is told; `plan` no more than this and `names`."""

    version: int
    verb: Verb
    deadline_s: float  # the hook is killed after that time
    origin: str  # an absolute path without symbolic links, or a network origin such as rbd:pool/image


@dataclass(frozen=True)
class PlanQuestion(Question):
    """Whether the hook can take snapshots of the origin, and at what cost."""

    names: tuple[str, ...]  # the origin, and for a block device the links by which udev knows it


@dataclass(frozen=True)
class SnapshotQuestion(Question):
    """`take`, `status` and `delete`: of one snapshot of one origin."""

    snapshot: str  # its id, for all of its disks
    name: str  # that it shall have on the storage; no other snapshot of any origin has the same
    reader: User  # which must be able to read what is frozen
    state: Mapping[str, Any]  # what plan has answered


@dataclass(frozen=True)
class Older:
    """An older snapshot of the same origin, which is still there."""

    snapshot: str
    name: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class ChangedQuestion(SnapshotQuestion):
    """`changed`: what differs between an older snapshot and this one."""

    older: Older


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanAnswer:
    """Either why_not, or the rest."""

    why_not: str | None = None
    pause_s: float | None = None  # how long take is expected to last
    remedy: str | None = None  # what would make that shorter
    guest_pays: str = ""
    gives_url: bool = False  # whether frozen will be a URL
    comparable: bool = False  # whether `changed` can tell its snapshots from later ones
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """Of `take` and `delete`: an empty object."""


@dataclass(frozen=True)
class StatusAnswer:
    """Either lost, as before it is taken, or frozen, and the rooms that the hook knows of."""

    lost: str | None = None  # why
    frozen: str | None = None  # an absolute path, or a URL
    rooms: tuple[Room, ...] = ()
    holds_s: float = HOLDS_S  # for how long it need not be asked again


@dataclass(frozen=True)
class ChangedExtent:
    """A part of the disk, in bytes."""

    start: int
    length: int
    zero: bool = False  # whether it reads as zeros now


@dataclass(frozen=True)
class ChangedAnswer:
    """Either why_not, or extents, in order, none twice."""

    why_not: str | None = None
    extents: tuple[ChangedExtent, ...] | None = None


def read_plan(answer: bytes) -> PlanAnswer:
    """Raises DocumentError."""
    read = _read(PlanAnswer, answer)
    _one_of(read, "why_not", "pause_s")
    if read.pause_s is not None and read.pause_s < 0:
        raise DocumentError(f"pause_s is {read.pause_s:g}, less than 0")
    return read


def read_done(answer: bytes) -> Done:
    """Raises DocumentError."""
    return _read(Done, answer)


def read_status(answer: bytes) -> StatusAnswer:
    """Raises DocumentError."""
    read = _read(StatusAnswer, answer)
    _one_of(read, "lost", "frozen")
    if read.frozen is not None:
        _check_frozen(read.frozen)
    for i, room in enumerate(read.rooms):
        if not 0 <= room.free_bytes <= room.total_bytes:
            raise DocumentError(f"rooms[{i}] has {room.free_bytes} free bytes of {room.total_bytes}")
    if not 0 <= read.holds_s <= HOLDS_MAX_S:
        raise DocumentError(f"holds_s is {read.holds_s:g}, not from 0 to {HOLDS_MAX_S:g}")
    return read


def read_changed(answer: bytes) -> Sequence[Extent] | str:
    """The extents, or why that cannot be told.  Raises DocumentError."""
    read = _read(ChangedAnswer, answer)
    _one_of(read, "why_not", "extents")
    if read.why_not is not None:
        return read.why_not
    extents = [Extent(each.start, each.length, HOLE | ZERO if each.zero else 0) for each in read.extents or ()]
    for i, extent in enumerate(extents):
        if extent.start < 0 or extent.length <= 0:
            raise DocumentError(f"extents[{i}] starts at {extent.start} and has {extent.length} bytes")
    for i, (first, second) in enumerate(pairwise(extents), 1):
        if second.start < first.end:
            raise DocumentError(f"extents[{i}] starts at {second.start}, before the end of the one before it")
    return extents


def _read(kind: type[T], answer: bytes) -> T:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        said = answer.strip().decode(errors="replace")
        raise DocumentError(f"it is no JSON: {json.dumps(said[:60])}" if said else "it is empty") from None
    return from_document(kind, document)


def _one_of(answer: object, first: str, second: str) -> None:
    """An answer has one of the two, and not the other."""
    if getattr(answer, first) is None and getattr(answer, second) is None:
        raise DocumentError(f"{second} is missing")
    if getattr(answer, first) is not None and getattr(answer, second) is not None:
        raise DocumentError(f"it has both {first} and {second}")


def _check_frozen(frozen: str) -> None:
    """It is printed, and a path is opened: nothing relative, nothing that hides something."""
    shown = json.dumps(frozen[:60])
    if len(frozen) > FROZEN_MAX:
        raise DocumentError(f"frozen has {len(frozen)} characters, more than {FROZEN_MAX}")
    if frozen.startswith("/"):
        return
    if not _URL.fullmatch(frozen):
        raise DocumentError(f"frozen is {shown}, neither an absolute path nor a URL")
    try:
        password = urlsplit(frozen).password
    except ValueError:
        raise DocumentError(f"frozen is {shown}, which is no valid URL") from None
    if password is not None:
        raise DocumentError("frozen is a URL with a password, which everybody would see")
