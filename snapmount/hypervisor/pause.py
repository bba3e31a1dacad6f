"""Pauses a VM around the moment of a snapshot, and lets it go on whatever happens.

When virDomainSuspend() returns, all that the guest has written has come to its images: QEMU has waited for its
requests, and flushed its caches and those of qcow2 (do_vm_stop() in its system/cpus.c).  The event that tells of it
comes before that.

Before it is done, it is written down that the VM may be paused: whoever finds the record resumes it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

import libvirt
import trio

from ..core import names
from ..errors import SnapmountError, StateError, UnreachableError
from ..host.processes import boot_id
from ..records.record import Record
from ..records.store import Lease
from .calls import call, change, explained, refusal
from .connection import connected
from .domain import Domain

log = logging.getLogger(__name__)

RESUME_TRIES = 3
LATE_S = 3.0  # for a suspend that a process had asked libvirt for, which has died since
POLL_S = 0.05

_BY_A_CALL = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
_STILL = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)


class Pause:
    """A pause of a VM."""

    def __init__(self, is_ours: bool) -> None:
        self.is_ours = is_ours  # whether the VM ran, and goes on when it is over
        self.began_s = trio.current_time()
        self.lasted_s = 0.0  # once it is over: no shorter than the guest has seen it


@contextlib.asynccontextmanager
async def paused(domain: Domain, lease: Lease) -> AsyncIterator[Pause]:
    """Pause the VM for as long as the block lasts.  One that does not run, or is paused, stays as it is.

    Raises StateError if libvirt refuses, or somebody lets it run meanwhile; UnreachableError if libvirt does not
    answer, or the VM cannot be resumed.
    """
    state, _ = await _state(domain)
    if state in _STILL:
        yield Pause(is_ours=False)
        if (await _state(domain))[0] not in _STILL:
            raise StateError(f"{domain.name} was resumed or started while the snapshot was taken")
        return
    lease.update(paused_run=await domain.run_id())
    pause, is_suspended = Pause(is_ours=True), False
    try:
        await _suspend(domain)
        is_suspended = True
        yield pause
    except BaseException:
        with trio.CancelScope(shield=True):
            await _resume_quietly(domain, lease if is_suspended else None)  # else a late suspend may come still
        raise
    with trio.CancelScope(shield=True):
        await _resume(domain)
        pause.lasted_s = trio.current_time() - pause.began_s
    log.info("%s was paused for %.0f ms", domain.name, 1000 * pause.lasted_s)
    lease.update(paused_run=None)


async def resume(record: Record) -> None:
    """Let a VM go on that may be paused still for the snapshot's sake.  Idempotent.  Raises UnreachableError.

    What has begun since, another run of the VM or of the host, is not ours.
    """
    if record.paused_run is None or record.server.boot_id != boot_id():
        return
    async with connected(record.connect) as hypervisor:
        domain = await hypervisor.domain_by_uuid(record.snapshot.vm_uuid)
        if domain is None or await domain.run_id() != record.paused_run:
            return
        with trio.move_on_after(LATE_S):
            while await _state(domain) != _BY_A_CALL:
                await trio.sleep(POLL_S)
            log.warning("%s was paused for the snapshot: it goes on", domain.name)
            await _resume(domain)


async def _state(domain: Domain) -> tuple[int, int]:
    with explained(f"{domain.name}: read the state"):
        state, reason = await call("read the state", domain._handle.state)
    return state, reason


async def _suspend(domain: Domain) -> None:
    try:
        await change(f"suspend {domain.name}", domain._handle.suspend)
    except libvirt.libvirtError as error:
        raise refusal(f"{domain.name} cannot be paused", error) from error


async def _resume(domain: Domain) -> None:
    for tries_left in reversed(range(RESUME_TRIES)):
        try:
            await change(f"resume {domain.name}", domain._handle.resume)
            return
        except (libvirt.libvirtError, UnreachableError) as error:
            if isinstance(error, libvirt.libvirtError) and (await _state(domain))[0] != libvirt.VIR_DOMAIN_PAUSED:
                return  # it has ended, or somebody was faster
            if not tries_left:
                raise UnreachableError(
                    f"{domain.name} is paused, and cannot be resumed: {error}",
                    names.command("virsh", "resume", domain.name),
                ) from error


async def _resume_quietly(domain: Domain, lease: Lease | None) -> None:
    """After something has failed already: a second error must not hide the first one; teardown tries again."""
    try:
        await _resume(domain)
        if lease:
            lease.update(paused_run=None)
    except SnapmountError as error:
        log.warning("%s", error.message)
