"""Measures the scratch space of a snapshot and how fast it goes, and keeps the figures beside its record for `list` and
`show`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from ....core.space import Fill, Pot, Rate
from ....errors import SpaceError, StateError, UnreachableError
from ....host import blocking
from ....hypervisor import Domain, directories
from ....records import documents
from ....records.record import Record
from .. import state
from . import devices
from .files import Opened, Used

LOOK_S = 10.0
CURRENT_S = 5.0  # figures that are older are of the past


class Gauge:
    """Measures one snapshot's scratch space again and again; what is not measured now is as it was.

    It holds scratch files open until it is closed.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._opened = Opened(record)
        self.used: dict[str, Used] = {}  # by disk
        self._free: dict[str, int] = {}
        self._growth: Rate | None = None
        self._filling: dict[str, Rate] = {}

    async def read(self, domain: Domain | None, *, is_guest_stopped: bool = False) -> Fill:
        """What there is now: of files and file systems by looking, of block devices, and of files that are gone, by
        asking libvirt, where `domain` is given.

        Raises SpaceError where there is no looking, unless it is known to have failed.
        """
        try:
            await self._look()
        except SpaceError:
            if not self.failure:
                raise
        if domain and self.unseen:
            with contextlib.suppress(UnreachableError, OSError):  # the last figures serve
                await self._ask(domain)
        now = trio.current_time()
        used = sum(each.used for each in self.used.values())
        self._growth = self._growth.after(now, used) if self._growth else Rate.begin(now, used)
        for name, free in self._free.items():
            before = self._filling.get(name)
            self._filling[name] = before.after(now, -free) if before else Rate.begin(now, -free)
        pots = tuple(
            Pot(name, free, self._remaining(name), self._filling[name].bytes_per_s) for name, free in self._free.items()
        )
        return Fill(used, self._growth.bytes_per_s, state.of(self._record).terms, pots, is_guest_stopped, self.failure)

    @property
    def failure(self) -> str | None:
        """What has failed of the scratch space, in words; that does not become good again."""
        return self._opened.failure

    def note_failure(self, what: str) -> None:
        """Somebody has found it to fail."""
        self._opened.failure = self._opened.failure or what

    async def _look(self) -> None:
        """Raises SpaceError."""
        parent = Path(state.of(self._record).scratch).parent
        try:
            used, free = await blocking.call(LOOK_S, self._look_at, parent)
        except trio.TooSlowError:
            raise SpaceError(f"{parent}: its file system did not answer within {LOOK_S:g} s") from None
        except OSError as error:
            raise SpaceError(f"{state.of(self._record).scratch}: {error.strerror}") from error
        self.used |= used
        self._free |= free

    def _look_at(self, parent: Path) -> tuple[dict[str, Used], dict[str, int]]:
        """What files take, and what is free in their file system, where there are any."""
        used = self._opened.look()
        return used, {} if self.is_on_devices else {str(parent): directories.free_bytes(parent)}

    @property
    def is_on_devices(self) -> bool:
        """Whether none of it is in files."""
        return all(state.of(self._record).terms.device(disk.name) for disk in self._record.snapshot.disks)

    @property
    def unseen(self) -> list[str]:
        """The disks of whose scratch only libvirt can tell: on block devices, or in files that were gone early."""
        return [disk.name for disk in self._record.snapshot.disks if not self._opened.measures(disk.name)]

    async def _ask(self, domain: Domain) -> None:
        written, indexes = await domain.written(), await domain.scratch_indexes(state.of(self._record).socket)
        for disk in self.unseen:
            end = written.get((disk, indexes.get(disk, -1)))
            if end is None:
                continue
            self.used[disk] = Used(end, end)
            device = state.of(self._record).terms.device(disk)
            if device:
                self._free[device] = await blocking.call(LOOK_S, devices.size, device) - end

    def close(self) -> None:
        """Let go of the scratch files, so that their space is free when they are removed."""
        self._opened.close()

    def _remaining(self, pot: str) -> int:
        """What the snapshot may still take from that place."""
        terms = state.of(self._record).terms
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
        documents.write(directory / "space.json", asdict(self))

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
            found = documents.read(directory / "space.json", cls.from_json)
        except StateError:
            return None
        return found if found and 0 <= time.monotonic() - found.at_s <= CURRENT_S else None
