"""Measures the scratch space of a snapshot and how fast it goes, and keeps the figures beside its record for `list` and
`show`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from .. import blocking, jsonfiles
from ..core.space import Fill, Pot, Rate
from ..errors import SpaceError, StateError, UnreachableError
from ..hypervisor import Domain
from ..records import Record
from . import devices, directories, files
from .files import Used

LOOK_S = 10.0
CURRENT_S = 5.0  # figures that are older are of the past


@dataclass(frozen=True)
class Measured:
    """What is used of scratch space, and what is free, where it could be told."""

    used: Mapping[str, Used]  # by disk
    free: Mapping[str, int]  # bytes, by file system (the scratch directory's parent) and block device


async def measure(record: Record, domain: Domain | None) -> Measured:
    """Look at files and file systems, and, of block devices, ask libvirt where `domain` is given.

    Raises SpaceError where the file system cannot be looked at; what libvirt does not tell is left out.
    """
    used, free = dict[str, Used](), dict[str, int]()
    if any(not record.terms.device(disk.name) for disk in record.snapshot.disks):
        parent = Path(record.scratch).parent
        try:
            used, free[str(parent)] = await blocking.call(LOOK_S, _look, record, parent)
        except trio.TooSlowError:
            raise SpaceError(f"{parent}: its file system did not answer within {LOOK_S:g} s") from None
        except OSError as error:
            raise SpaceError(f"{record.scratch}: {error.strerror}") from error
    if record.terms.devices and domain:
        try:
            await _ask(record, domain, used, free)
        except (UnreachableError, OSError):
            pass  # the last figures serve
    return Measured(used, free)


def _look(record: Record, parent: Path) -> tuple[dict[str, Used], int]:
    return files.look(record), directories.free_bytes(parent)


async def _ask(record: Record, domain: Domain, used: dict[str, Used], free: dict[str, int]) -> None:
    written, indexes = await domain.written(), await domain.scratch_indexes(record.socket)
    for disk, device in record.terms.devices:
        end = written.get((disk, indexes.get(disk, -1)))
        if end is not None:
            used[disk] = Used(end, end)
            free[device] = await blocking.call(LOOK_S, devices.size, device) - end


class Gauge:
    """Measures one snapshot's scratch space again and again; what is not measured now is as it was."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.used: dict[str, Used] = {}  # by disk
        self._free: dict[str, int] = {}
        self._growth: Rate | None = None
        self._filling: dict[str, Rate] = {}

    async def read(self, domain: Domain | None, *, is_guest_stopped: bool = False) -> Fill:
        """What there is now.  Raises SpaceError, as measure() does."""
        measured = await measure(self._record, domain)
        self.used |= measured.used
        self._free |= measured.free
        now = trio.current_time()
        used = sum(each.used for each in self.used.values())
        self._growth = self._growth.after(now, used) if self._growth else Rate.begin(now, used)
        for name, free in self._free.items():
            before = self._filling.get(name)
            self._filling[name] = before.after(now, -free) if before else Rate.begin(now, -free)
        pots = tuple(
            Pot(name, free, self._remaining(name), self._filling[name].bytes_per_s) for name, free in self._free.items()
        )
        return Fill(used, self._growth.bytes_per_s, self._record.terms, pots, is_guest_stopped)

    def _remaining(self, pot: str) -> int:
        """What the snapshot may still take from that place."""
        terms = self._record.terms
        on_devices = dict(terms.devices)
        disks = [
            (disk.size_bytes, self.used[disk.name].used if disk.name in self.used else 0)
            for disk in self._record.snapshot.disks
            if on_devices.get(disk.name) == (pot if pot in on_devices.values() else None)
        ]
        is_reserved = terms.is_reserved and pot not in on_devices.values()
        return 0 if is_reserved else terms.remaining_bytes(disks)


@dataclass(frozen=True)
class Figures:
    """What the server of a snapshot has measured."""

    at_s: float  # time.monotonic(), which all processes of a host share, and which no one steps
    used_bytes: int
    bytes_per_s: float
    left_s: float | None

    def write(self, directory: Path) -> None:
        """Keep them in the snapshot's runtime directory.  Raises OSError."""
        jsonfiles.write(directory / "space.json", asdict(self))

    @classmethod
    def from_json(cls, document: Any) -> Figures:
        """Raises KeyError, TypeError or ValueError for another shape."""
        left = document["left_s"]
        return cls(
            float(document["at_s"]),
            int(document["used_bytes"]),
            float(document["bytes_per_s"]),
            None if left is None else float(left),
        )

    @classmethod
    def load(cls, directory: Path) -> Figures | None:
        """Those of now; None where there are none."""
        try:
            found = jsonfiles.read(directory / "space.json", cls.from_json)
        except StateError:
            return None
        return found if found and 0 <= time.monotonic() - found.at_s <= CURRENT_S else None
