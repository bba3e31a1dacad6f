"""Measures the scratch space of a snapshot and how fast it goes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import trio

from ....core.filling import Pool, Rate
from ....errors import SpaceError, UnreachableError
from ....host import blocking, usage
from ....hypervisor import Domain
from ....records.record import Record
from .. import state
from ..space import Usage
from . import devices
from .files import Opened, Used

LOOK_S = 10.0


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

    async def read(self, domain: Domain | None, *, is_guest_stopped: bool = False) -> Usage:
        """What there is now: of files and file systems by looking, of block devices, and of files that are gone, by
        asking libvirt, where `domain` is given.

        Raises SpaceError if there is no looking, unless it is known to have failed.
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
        pools = tuple(
            Pool(name, free, self._remaining(name), self._filling[name].bytes_per_s)
            for name, free in self._free.items()
        )
        return Usage(
            used, self._growth.bytes_per_s, state.of(self._record).policy, pools, is_guest_stopped, self.failure
        )

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
        return used, {} if self.is_on_devices else {str(parent): usage.free_bytes(parent)}

    @property
    def is_on_devices(self) -> bool:
        """Whether none of it is in files."""
        return all(state.of(self._record).policy.device(disk.name) for disk in self._record.snapshot.disks)

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
            device = state.of(self._record).policy.device(disk)
            if device:
                self._free[device] = await blocking.call(LOOK_S, devices.size, device) - end

    def close(self) -> None:
        """Let go of the scratch files, so that their space is free when they are removed."""
        self._opened.close()

    def _remaining(self, pool: str) -> int:
        """What the snapshot may still take from that place."""
        policy = state.of(self._record).policy
        on_devices = dict(policy.devices)
        disks = [
            (disk.size_bytes, self.used[disk.name].used if disk.name in self.used else 0)
            for disk in self._record.snapshot.disks
            if on_devices.get(disk.name) == (pool if pool in on_devices.values() else None)
        ]
        is_reserved = policy.is_reserved and pool not in on_devices.values()
        return 0 if is_reserved else policy.remaining_bytes(disks)
