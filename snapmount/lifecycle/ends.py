"""How a snapshot has ended, or what keeps it from that, as values: for those who tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..attach.attachments import Attachment
from ..core import names
from ..records.record import Record

_SHOWN = 5


@dataclass(frozen=True)
class Ended:
    """A snapshot that is no more, and what has gone with it."""

    record: Record
    scratch_vms: tuple[str, ...] = ()  # names of those that were destroyed
    unplugged: tuple[Attachment, ...] = ()
    luns: int = 0  # that were withdrawn


@dataclass(frozen=True)
class Reader:
    """A process that uses the mount."""

    pid: int
    command: str  # its name, as ps(1) shows it

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid})"


@dataclass(frozen=True)
class Hidden:
    """A snapshot that is no longer mounted, and ends when its readers have closed its files."""

    record: Record
    readers: tuple[Reader, ...]


def listed(readers: Sequence[Reader]) -> str:
    """Them in words: 'less (process 4711) and bash (process 4712)'."""
    shown = [str(reader) for reader in readers[:_SHOWN]]
    if more := len(readers) - len(shown):
        shown.append(f"{more} more")
    return names.listed(shown)
