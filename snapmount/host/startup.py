"""What the process sees to before anything else, while it has made nothing: what a Ctrl-C does, and its streams.

It imports little: a Ctrl-C before begin() would print a traceback where the launcher has not kept it back.
"""

from __future__ import annotations

import io
import os
import signal
import sys

# Where a stream is closed, the next file or socket would take its place, and be written to by who means the stream.  A
# standard output that is closed is not to swallow what is printed: a write to this descriptor fails, with EBADF.
_CLOSED = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


def begin() -> None:
    """Let Ctrl-C end the process by itself, and open the standard streams that are closed."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # the launcher has blocked it
    for number, flags in _CLOSED:
        _open_closed(number, flags)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or _writing_to(1)
    sys.stderr = sys.stderr or _writing_to(2)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the locale lacks must not keep a result from being told
        sys.stdout.reconfigure(errors="backslashreplace")


def _open_closed(number: int, flags: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, flags), True)  # it gets the lowest number that is free: this one


def _writing_to(number: int) -> io.TextIOWrapper:
    return open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
