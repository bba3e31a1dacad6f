"""Signals that ask for the end of this process: Ctrl-C, SIGTERM, SIGHUP.

As long as a command has made nothing, they end it by themselves.  From note() on they never do: they are noted, unless
somebody receives them (interruptible.py), to the very end, which is os._exit(): Python would let them kill it while it
finalises, when all is done and told.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from ..errors import InterruptedByUserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_were_ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
_noted: list[int] = []


def note(then: Callable[[], None] | None = None) -> None:
    """From now on they are noted; `then` is called for the first one since take_noted().

    Those that follow change nothing, and are over at once: however fast they come, they do not pile up.
    """

    def noted(number: int, _frame: FrameType | None) -> None:
        if _noted:
            return
        _noted.append(number)
        if then:
            then()

    for number in SIGNALS:
        signal.signal(number, noted)


@contextlib.contextmanager
def told() -> Iterator[int]:
    """A descriptor that is readable when one is noted while the block lasts: for who waits without trio.  Raises
    InterruptedByUserError if one has been noted already.
    """
    descriptor = os.eventfd(0)
    tell = partial(os.eventfd_write, descriptor, 1)
    note(tell)
    try:
        if take_noted():
            raise InterruptedByUserError("interrupted")
        yield descriptor
    finally:
        note()
        os.close(descriptor)


def have_come() -> bool:
    """Whether one has been noted that nobody has acted upon."""
    return bool(_noted)


def take_noted() -> bool:
    """have_come(), and from now on it is as if they had not."""
    taken = len(_noted)
    del _noted[:taken]
    return taken > 0


def put_back() -> None:
    """One that was received has changed nothing, and is noted again."""
    _noted.append(signal.SIGINT)


def end_again() -> None:
    """From now on they end the process by themselves again: nothing that was begun is unfinished.  Raises
    InterruptedByUserError if one has been noted that nobody has acted upon.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in _were_ignored else signal.SIG_DFL)
    if take_noted():
        raise InterruptedByUserError("interrupted")


def let_end() -> None:
    """From now on they do what they did in the process that started us: for a program that is run in our place."""
    for number in (*SIGNALS, *_IGNORED_BY_PYTHON):
        signal.signal(number, signal.SIG_IGN if number in _were_ignored else signal.SIG_DFL)
