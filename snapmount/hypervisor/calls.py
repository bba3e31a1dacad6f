"""Calls of the libvirt binding: each in a thread and under a deadline, its errors as SnapmountErrors."""

from __future__ import annotations

import contextlib
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
THREADS = Threads("libvirt", 40)  # one that hangs must not keep the scratch space from being watched

# libvirt prints each error to stderr unless it is told otherwise
libvirt.registerErrorHandler(lambda _context, _error: None, None)


async def call(what: str, function: Callable[..., T], *args: Any, deadline_s: float = CALL_S) -> T:
    """Run a libvirt call.  A libvirtError passes; a call that does not end raises UnreachableError."""
    try:
        return await blocking.call(deadline_s, function, *args, threads=THREADS)
    except trio.TooSlowError:
        raise UnreachableError(f"libvirt did not answer within {deadline_s:g} s: {what}") from None


async def change(what: str, function: Callable[..., T], *args: Any, deadline_s: float = CALL_S) -> T:
    """call() for what makes something, which is waited for also where we are cancelled: who undoes it then must find it
    made, or not, and no thread left behind that makes it later.
    """
    with trio.CancelScope(shield=True):
        made = await call(what, function, *args, deadline_s=deadline_s)
    return made  # noqa: RET504  # mypy: a scope may swallow what is raised within


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
