"""Looks after the images of a VM that is shut off: whether they are changed, and whether the VM is started."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from ... import hypervisor
from ...core.lifecycle import State
from ...errors import UnreachableError
from ...host.logs import Problems
from ...images import fingerprint
from ...images.disks import Custody
from ...records.record import Record
from ...records.store import Store
from ..source import Loss
from . import state

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class OfflineWatch:
    """A Watch (see source.py)."""

    def __init__(self, record: Record) -> None:
        self.custody = Custody()
        self._record = record
        self._kept = state.of(record)

    async def wait_lost(self) -> Loss:
        """An image has been changed, the VM started, or the daemon has ended."""
        why: list[str] = []

        async def first(wait: Callable[[], Awaitable[str]]) -> None:
            why.append(await wait())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first, partial(fingerprint.wait_changed, self._kept.fingerprints))
            nursery.start_soon(first, self.custody.wait_daemon_ended)
            if not all(chain.is_locked for chain in self._kept.chains):
                nursery.start_soon(first, partial(wait_started, self._record))
        return Loss(State.LOST, why[0])

    async def release(self, _loss: Loss, _tell: Callable[[str], None]) -> None:
        """Let go of the images, so that the VM can be started."""
        self.custody.released.set()


async def wait_started(record: Record) -> str:
    """Return when the VM runs, in words.  If libvirt does not answer, it is asked again."""
    problems = Problems(log, "whether the VM is started cannot be told: %s")
    while True:
        try:
            async with hypervisor.connected(record.connect) as connection:
                while True:
                    domain = await connection.domain_by_uuid(record.snapshot.vm_uuid)
                    if domain and await domain.is_active():
                        return f"{domain.name} was started"
                    await trio.sleep(PERIOD_S)
        except UnreachableError as error:
            problems.met(error.message)
        await trio.sleep(PERIOD_S)


@asynccontextmanager
async def watched(record: Record, _store: Store) -> AsyncIterator[OfflineWatch]:
    """See Source."""
    yield OfflineWatch(record)
