"""Calls of the libvirt binding: each in a thread and under a deadline, its errors as SnapmountErrors."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import libvirt
import trio

from ..core import names, qemulock
from ..errors import StateError, UnreachableError
from ..host import blocking
from ..host.blocking import Threads

T = TypeVar("T")

CALL_S = 30.0
CLOSE_S = 5.0
POLL_S = 0.02
THREADS = Threads("libvirt", 40)  # one that hangs must not keep the scratch space from being watched

# libvirt prints each error to stderr unless it is told otherwise
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Uses:
    """The calls that are under way on each connection, also those that nobody waits for any more.

    libvirt frees a connection when it is closed, and not when the last call on it has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: Counter[int] = Counter()  # by the id of the connection

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """What function(*args) returns."""
        used = id(_connection_of(function, args))
        with self._lock:
            self._numbers[used] += 1
        try:
            return function(*args)
        finally:
            with self._lock:
                self._numbers[used] -= 1
                self._numbers += Counter()  # without those that are zero

    def has(self, connection: libvirt.virConnect) -> bool:
        """Whether there is one."""
        with self._lock:
            return self._numbers[id(connection)] > 0


def _connection_of(function: Callable[..., object], args: tuple[Any, ...]) -> libvirt.virConnect | None:
    """That of a method of a connection or of what belongs to one, or of a function that is given one."""
    owner = getattr(getattr(function, "func", function), "__self__", None)
    if isinstance(owner, libvirt.virDomain | libvirt.virStoragePool):
        return owner.connect()
    return next((each for each in (owner, *args) if isinstance(each, libvirt.virConnect)), None)


USES = Uses()


async def call(what: str, function: Callable[..., T], *args: Any, deadline_s: float = CALL_S) -> T:
    """Run a libvirt call.  A libvirtError passes; a call that does not end raises UnreachableError."""
    try:
        return await blocking.call(deadline_s, USES.run, function, *args, threads=THREADS)
    except trio.TooSlowError:
        raise UnreachableError(f"libvirt did not answer within {deadline_s:g} s: {what}") from None


async def change(what: str, function: Callable[..., T], *args: Any, deadline_s: float = CALL_S) -> T:
    """call() for what makes something, which is waited for also where we are cancelled: who undoes it then must find it
    made, or not, and no thread left behind that makes it later.
    """
    with trio.CancelScope(shield=True):
        made = await call(what, function, *args, deadline_s=deadline_s)
    return made  # noqa: RET504  # mypy: a scope may swallow what is raised within


async def close(connection: libvirt.virConnect) -> None:
    """Close a connection once the calls on it that were left behind have ended.  If one of them does not, the binding
    closes it when that is over, as nobody has it any more then.
    """
    with trio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(UnreachableError, libvirt.libvirtError):
        while USES.has(connection):
            await trio.sleep(POLL_S)
        await call("close the connection", connection.close)


def refusal(what: str, error: libvirt.libvirtError) -> StateError:
    """The error where libvirt or QEMU refuses, for a lock of an image that another process has for instance."""
    path = qemulock.refused(str(error))
    if path is None:
        return StateError(f"{what}: {error}")
    return StateError(
        f"{what}: another process has {path or 'an image of it'} open, and QEMU's locks do not let both have it",
        f"{names.command('fuser', '--verbose', path or 'IMAGE')}   (which process that is)",
    )


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn a libvirtError into an UnreachableError that says what was being done."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise UnreachableError(f"{what}: {error}") from error
