"""Opens the disks of a snapshot whose images lie there for anybody to read: those that are one raw image of this host
are read by ourselves, all others are exports of one daemon.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ..core import imagechain
from ..core.image import OpenImage
from ..core.imagechain import Chain, Layer
from ..core.user import User
from ..errors import NotFoundError, StateError
from ..host import blocking, shutdown
from . import daemon, lock, nbd, raw
from .bitmap import Bitmap
from .daemon import Daemon

log = logging.getLogger(__name__)

LOOK_S = 30.0


@dataclass(frozen=True)
class Access:
    """How disks are opened."""

    socket: str  # where the daemon listens
    reader: User  # as whom it runs
    deadline_s: float  # of a read
    locked: Sequence[str]  # what the daemon reads and others could write to: QEMU's lock keeps them from it
    changed: Mapping[str, tuple[str, Bitmap]] = field(default_factory=dict)  # by disk, a bitmap of its image that tells


class Custody:
    """What those who open the images of a snapshot and who watches it tell each other."""

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


@asynccontextmanager
async def opened(chains: Sequence[Chain], access: Access, custody: Custody) -> AsyncIterator[Sequence[OpenImage]]:
    """The disks, in their order.  Raises StateError if an image is not there, cannot be opened, or is written to."""
    served = imagechain.served(chains)
    async with AsyncExitStack() as stack:
        try:
            images = await _opened_files(stack, chains, access)
            locks = [await _locked(stack, path) for path in access.locked]
        except NotFoundError as error:  # by now it is the snapshot that has gone
            raise StateError(error.message, error.remedy) from error
        if served:
            images |= await _exports(stack, served, access, locks, custody)
        yield [images[chain.disk] for chain in chains]


async def _opened_files(stack: AsyncExitStack, chains: Sequence[Chain], access: Access) -> dict[str, OpenImage]:
    return {
        chain.disk: await stack.enter_async_context(raw.opened(chain.disk, chain.path, access.deadline_s))
        for chain in chains
        if chain.path is not None
    }


async def _locked(stack: AsyncExitStack, path: str) -> int:
    """QEMU's lock of an image, which is not read by us, until the stack is closed."""
    with trio.CancelScope(shield=True):  # else a thread left behind would open what nobody closes
        descriptor = await blocking.on_path(path, LOOK_S, lock.held, path)
    stack.callback(os.close, descriptor)
    return descriptor


async def _exports(
    stack: AsyncExitStack,
    served: dict[str, tuple[Layer, ...]],
    access: Access,
    locks: Sequence[int],
    custody: Custody,
) -> dict[str, OpenImage]:
    """What a daemon exports, which ends with the stack, or with the point in time."""
    exported = {name: bitmap for name, (bitmap, _) in access.changed.items()}
    socket, deadline_s, budget = access.socket, access.deadline_s, nbd.Budget(len(served))
    served_by = await stack.enter_async_context(daemon.serving(served, Path(socket), access.reader, exported))
    images: dict[str, OpenImage] = {}
    for name in served:
        _, bitmap = access.changed.get(name, (None, None))
        opened = nbd.opened(name, socket, name, deadline_s, budget, bitmap)
        images[name] = await stack.enter_async_context(opened)
    nursery = await stack.enter_async_context(_cancelled_at_the_end())
    nursery.start_soon(_tell_end, served_by, custody)
    nursery.start_soon(_let_go, served_by, locks, custody)
    return images


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def _tell_end(served_by: Daemon, custody: Custody) -> None:
    """A shutdown of the host, which ends all processes, may end it before this one; the images outlive that."""
    how = await served_by.wait_ended()
    if await shutdown.is_under_way():
        log.info("%s: the host is shut down", how)
    else:
        custody.daemon_has_ended(how)


async def _let_go(served_by: Daemon, locks: Sequence[int], custody: Custody) -> None:
    """Once the snapshot is lost, it must not keep the VM from being started."""
    await custody.released.wait()
    for descriptor in locks:
        lock.release(descriptor)
    await served_by.end()
