"""Events of a VM, as libvirt tells them over a connection that stays open.

libvirt's own event loop runs in a thread: it must be there before the connection is opened, and it cannot be taken away
again (https://libvirt.org/html/libvirt-libvirt-event.html), so the thread lives as long as the process.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import libvirt
import trio

from ..errors import NotFoundError, SnapmountError
from .calls import call, change, explained
from .connection import Hypervisor, connected
from .domain import DiskError, Domain

CLOSE_S = 5.0


@functools.cache
def _start_loop() -> None:
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_loop, name="libvirt events", daemon=True).start()


def _loop() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


class Subscription:
    """A VM whose events are heard."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.lost = trio.Event()  # the connection is: no more events come


@contextlib.asynccontextmanager
async def subscribed(
    uri: str,
    uuid: str,
    on_threshold: Callable[[str], None],
    on_stop: Callable[[], None],
    on_io_error: Callable[[DiskError], None],
) -> AsyncIterator[Subscription]:
    """Connect, and tell when a threshold of Domain.set_threshold() is crossed ('vda[3]'), of each I/O error of
    its disks, whether the VM is paused, told of it, or neither (error_policy in libvirt's domain format), and then when
    it is paused by it.

    Raises UnreachableError, or NotFoundError if libvirt does not know the VM.
    """
    _start_loop()
    token = trio.lowlevel.current_trio_token()

    def tell(function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(function, *args)

    def lifecycle(_connection: Any, _domain: Any, event: int, detail: int, _opaque: Any) -> None:
        if (event, detail) == (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR):
            tell(on_stop)

    def io_error(_connection: Any, _domain: Any, _path: str, _device: str, _action: int, reason: str, _: Any) -> None:
        tell(on_io_error, DiskError.NO_SPACE if reason == "enospc" else DiskError.OTHER)

    def threshold(_connection: Any, _domain: Any, node: str, *_: Any) -> None:
        tell(on_threshold, node)

    async with connected(uri) as hypervisor:
        domain = await hypervisor.domain_by_uuid(uuid)
        if domain is None:
            raise NotFoundError(f"libvirt does not know the VM {uuid} any more")
        this = Subscription(domain)
        handlers: dict[int, Callable[..., None]] = {
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: lifecycle,
            libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON: io_error,
            libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD: threshold,
        }
        async with _registered(hypervisor, domain, handlers, lambda *_: tell(this.lost.set)):
            yield this


@contextlib.asynccontextmanager
async def _registered(
    hypervisor: Hypervisor, domain: Domain, handlers: dict[int, Callable[..., None]], on_close: Callable[..., None]
) -> AsyncIterator[None]:
    connection, numbers = hypervisor._connection, []
    try:
        with explained(f"{domain.name}: listen for events"):
            await change("listen for the end of the connection", connection.registerCloseCallback, on_close, None)
            for kind, handler in handlers.items():
                register = functools.partial(connection.domainEventRegisterAny, domain._handle, kind, handler, None)
                numbers.append(await change("listen for events", register))
        yield
    finally:  # what is registered would keep the connection open
        with trio.CancelScope(shield=True), contextlib.suppress(SnapmountError):
            await call("listen no more", _unregister, connection, numbers, deadline_s=CLOSE_S)


def _unregister(connection: Any, numbers: Iterable[int]) -> None:
    """What cannot be done any more need not be."""
    for number in numbers:
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(number)
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
