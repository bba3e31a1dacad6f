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
from ...records.record import Record
from ...records.store import Store
from ..source import Loss
from . import state
from .state import OfflineState

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class Custody:
    """What open() and the watch of a snapshot in one process tell each other."""

    def __init__(self) -> None:
        self.released = trio.Event()  # the point in time is lost: nothing is to be held any longer
        self._ended = trio.Event()
        self._how = ""

    def daemon_has_ended(self, how: str) -> None:
        self._how = how
        self._ended.set()

    async def wait_daemon_ended(self) -> str:
        """Return how."""
        await self._ended.wait()
        return self._how


_custodies: dict[str, Custody] = {}  # of the snapshots that this process watches, by id


def custody(snapshot_id: str) -> Custody:
    """That of a snapshot; of one that is not watched, one that tells nobody."""
    return _custodies.get(snapshot_id) or Custody()


class Watch:
    """See sources.source.Watch."""

    def __init__(self, record: Record, kept: OfflineState, custody: Custody) -> None:
        self._record = record
        self._kept = kept
        self._custody = custody

    async def wait_lost(self) -> Loss:
        """An image has been changed, the VM started, or the daemon has ended."""
        why: list[str] = []

        async def first(wait: Callable[[], Awaitable[str]]) -> None:
            why.append(await wait())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first, partial(fingerprint.wait_changed, self._kept.fingerprints))
            nursery.start_soon(first, self._custody.wait_daemon_ended)
            if not all(chain.is_locked for chain in self._kept.chains):
                nursery.start_soon(first, partial(wait_started, self._record))
        return Loss(State.LOST, why[0])

    async def release(self, _loss: Loss, _tell: Callable[[str], None]) -> None:
        """Let go of the images, so that the VM can be started."""
        self._custody.released.set()


async def wait_started(record: Record) -> str:
    """Return when the VM runs, in words.  Where libvirt does not answer, it is asked again."""
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
async def watched(record: Record, _store: Store) -> AsyncIterator[Watch]:
    """See Source."""
    found = _custodies[record.id] = Custody()
    try:
        yield Watch(record, state.of(record), found)
    finally:
        del _custodies[record.id]
