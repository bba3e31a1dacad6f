"""The source for a VM that is shut off, as the functions of the protocol Source: its images, read where they lie.

They are held with QEMU's lock for as long as the snapshot is shown, so that no VM can start writing to them.  What is
made is a socket alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from ... import hypervisor
from ...core import imagechain, names
from ...core.image import OpenImage
from ...core.imagechain import Layer
from ...core.origin import NetworkOrigin
from ...errors import LeftoverError, NotFoundError, StateError
from ...host import blocking, datadirectory
from ...hypervisor import directories
from ...images import fingerprint, lock, nbd, raw
from ...records.kept import Kept
from ...records.record import Record
from ...records.store import Lease
from ..source import ByHand, Subject
from . import daemon, state
from .daemon import Daemon
from .planning import plan_snapshot as plan
from .planning import why_not
from .state import OfflineState
from .watch import Custody, custody, watched

__all__ = [
    "OUTLIVES_REBOOT",
    "by_hand",
    "check_unused",
    "create",
    "destroy",
    "open",
    "plan",
    "release",
    "watched",
    "why_lost",
    "why_not",
]

log = logging.getLogger(__name__)

OUTLIVES_REBOOT = True  # nothing about files is lost then
LOOK_S = 30.0
REMOVE_S = 20.0


async def create(subject: Subject, lease: Lease) -> datetime:
    """Make the directory, and see that the images are still what they were when they were looked at."""
    kept = state.of(lease.record)
    await blocking.on_path(kept.directory, LOOK_S, _make, kept, done="written")
    if why := await why_not(subject.domain):
        raise why
    moment = datetime.now(UTC)
    changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
    if changed:
        raise StateError(f"{subject.domain.name}: {changed}, while the snapshot was taken", "the same command again")
    return moment


def _make(kept: OfflineState) -> None:
    datadirectory.make()
    Path(kept.directory).mkdir(mode=0o700)


@asynccontextmanager
async def open(record: Record) -> AsyncIterator[Sequence[OpenImage]]:  # noqa: A001
    """The raw images of this host themselves, and the exports of a daemon for all others."""
    kept, held = state.of(record), custody(record.id)
    async with AsyncExitStack() as stack:
        try:
            images = await _opened_files(stack, kept, record)
            locks = [await _locked(stack, path) for path in _served_paths(kept)]
        except NotFoundError as error:  # by now it is the snapshot that has gone
            raise StateError(error.message, error.remedy) from error
        if kept.served:
            served_by = await stack.enter_async_context(daemon.serving(kept.served, Path(kept.socket), kept.reader))
            images |= await _exports(stack, kept, record)
            nursery = await stack.enter_async_context(_cancelled_at_the_end())
            nursery.start_soon(_tell_end, served_by, held)
            nursery.start_soon(_let_go, served_by, locks, held)
        changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
        if changed:
            raise StateError(changed)
        yield [images[chain.disk] for chain in kept.chains]


async def _opened_files(stack: AsyncExitStack, kept: OfflineState, record: Record) -> dict[str, OpenImage]:
    return {
        chain.disk: await stack.enter_async_context(raw.opened(chain.disk, chain.path, record.read_timeout_s))
        for chain in kept.chains
        if chain.path is not None
    }


async def _exports(stack: AsyncExitStack, kept: OfflineState, record: Record) -> dict[str, OpenImage]:
    budget, read_s = nbd.Budget(len(kept.served)), record.read_timeout_s
    return {
        name: await stack.enter_async_context(nbd.opened(name, kept.socket, name, read_s, budget))
        for name in kept.served
    }


def _served_paths(kept: OfflineState) -> Sequence[str]:
    """The daemon locks the first image of each disk only: an NBD export lets others write to what that rests on."""
    return list(dict.fromkeys(path for layers in kept.served.values() for path in imagechain.paths(layers)))


async def _locked(stack: AsyncExitStack, path: str) -> int:
    """QEMU's lock of an image, which is not read by us, until the stack is closed."""
    with trio.CancelScope(shield=True):  # else a thread left behind would open what nobody closes
        descriptor = await blocking.on_path(path, LOOK_S, lock.held, path)
    stack.callback(os.close, descriptor)
    return descriptor


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def _tell_end(served_by: Daemon, held: Custody) -> None:
    held.daemon_has_ended(await served_by.wait_ended())


async def _let_go(served_by: Daemon, locks: Sequence[int], held: Custody) -> None:
    """Once the snapshot is lost, it must not keep the VM from being started."""
    await held.released.wait()
    for descriptor in locks:
        lock.release(descriptor)
    await served_by.end()


async def why_lost(record: Record) -> str | None:
    """See Source.  A VM that has been started and shut down meanwhile has changed its files and block devices; of
    images in a network only somebody who watched all the time can tell.
    """
    kept = state.of(record)
    changed = await blocking.call(LOOK_S, fingerprint.first_change, kept.fingerprints)
    if changed or all(chain.is_locked for chain in kept.chains):
        return changed
    in_network = [chain.disk for chain in kept.chains if _is_in_network(chain.layers)]
    if in_network and not (record.standby and record.standby.runs()):
        return f"nobody has watched meanwhile whether {names.listed(in_network)} was changed"
    async with hypervisor.connected(record.connect) as connection:
        domain = await connection.domain_by_uuid(record.snapshot.vm_uuid)
        return f"{domain.name} was started" if domain and await domain.is_active() else None


def _is_in_network(layers: Sequence[Layer]) -> bool:
    return any(isinstance(layer.origin, NetworkOrigin) for layer in layers)


async def release(_kept: Kept) -> None:
    """It costs no guest anything: there is none."""


async def check_unused(_kept: Kept) -> None:
    """Who used its directory was the daemon, which does not outlive the snapshot's server."""


async def destroy(kept: Kept) -> None:
    """Remove the directory, with the socket in it."""
    directory = state.of(kept).directory
    await blocking.on_path(directory, REMOVE_S, directories.remove, Path(directory), done="removed", kind=LeftoverError)


def by_hand(kept: Kept) -> ByHand:
    """See Source."""
    return ByHand(paths=[state.of(kept).directory])
