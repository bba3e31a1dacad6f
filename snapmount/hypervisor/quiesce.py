"""Freezes the guest's file systems around the moment of a snapshot, and thaws them whatever happens.

Before it is done, it is written down that they may be frozen: whoever finds the record thaws them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import trio

from ..core import names
from ..errors import SnapmountError, StateError, UnreachableError
from ..records.record import Record
from ..records.store import Lease
from .connection import connected
from .domain import Domain

log = logging.getLogger(__name__)

THAW_TRIES = 3
THAW_S = 15.0  # at the end of a snapshot, which must end all the same
AGENT_BACK_S = 600.0


@contextlib.asynccontextmanager
async def frozen(domain: Domain, lease: Lease) -> AsyncIterator[None]:
    """Freeze them for as long as the block lasts, which should be short: Windows itself thaws after 10 s.

    A thaw always follows a freeze, and its failure is an error: UnreachableError.  A freeze that the guest refuses is
    none: what is frozen then is so by others.  Raises StateError if it refuses or is paused, MissingError if the guest
    has no agent.
    """
    try:
        await _freeze(domain, lease)
        yield
    except BaseException:
        if lease.record.frozen:
            with trio.CancelScope(shield=True):
                await _thaw_quietly(domain, lease)
        raise
    with trio.CancelScope(shield=True):
        await _thaw(domain)
    lease.update(frozen=False)


async def _freeze(domain: Domain, lease: Lease) -> None:
    why = await domain.why_paused()
    if why:
        resume = names.command("virsh", "resume", domain.name)
        raise StateError(
            f"{domain.name}: the guest's file systems cannot be frozen: {why}", f"{resume}   (or do without --quiesce)"
        )
    await domain.agent.check()
    lease.update(frozen=True)
    try:
        await domain.agent.freeze()
    except StateError:
        lease.update(frozen=False)
        raise


async def _thaw(domain: Domain) -> None:
    for tries_left in reversed(range(THAW_TRIES)):
        try:
            await domain.agent.thaw()
            return
        except UnreachableError:
            if not tries_left:
                raise


async def _thaw_quietly(domain: Domain, lease: Lease) -> None:
    """Thaw after something has failed already: a second error must not hide the first one; teardown tries again."""
    try:
        await domain.agent.thaw()
        lease.update(frozen=False)
    except SnapmountError as error:
        log.warning("%s", error.message)


async def thaw(record: Record) -> None:
    """Thaw a guest that may be frozen still.  Idempotent.  Raises UnreachableError.

    A guest that was reset need not be thawed, and if no agent runs any more nobody can; libvirt does not tell either
    while a job runs.  So an agent has AGENT_BACK_S to answer, and no more is asked of it then.
    """
    if not record.frozen:
        return
    async with connected(record.connect) as hypervisor:
        domain = await hypervisor.domain_by_uuid(record.snapshot.vm_uuid)
        if domain is None or not await domain.is_active():
            return
        try:
            await domain.agent.thaw(THAW_S)
        except UnreachableError as error:
            since = datetime.now(UTC) - record.snapshot.created
            if since.total_seconds() < AGENT_BACK_S:
                raise
            log.warning("%s; that is given up", error.message)
