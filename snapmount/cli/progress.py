"""Shows on a terminal that something takes its time: what is being done, and since when.

It stands in the last line of standard error, which is cleared before anything else is written there, and at the end.  A
thread of its own draws it.  There is none while the process forks, since what a thread holds then stays held in the
child, which shows nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator

from ..core import names, units

AFTER_S = 1.0  # what is done by then needs no word
STEP_S = 0.25
COLUMNS = 80  # of a terminal that does not know its own
_WHEEL = "|/-\\"
_CLEAR = "\r\x1b[K"  # ECMA-48: the cursor to the left, and nothing right of it


class Progress:
    """What is being done now, if anything is to be shown of it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # of the line on the terminal
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._text = ""
        self._since_s = 0.0
        self._is_drawn = False
        os.register_at_fork(before=self._end_thread, after_in_parent=self._go_on, after_in_child=self._forget)

    @contextlib.contextmanager
    def shown(self, text: str) -> Iterator[None]:
        """Show the text on a terminal while the block lasts, where that is longer than AFTER_S; nothing for ''."""
        if not (text and _is_terminal()):
            yield
            return
        self._text, self._since_s = names.printable(text), time.monotonic()
        self._go_on()
        try:
            yield
        finally:
            self.end()

    def end(self) -> None:
        """Show nothing more, before the block has ended."""
        self._text = ""
        self._end_thread()

    def write(self, text: str) -> None:
        """Write to standard error what is not to be cleared; as a stream, for the logging."""
        with self.cleared():
            sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Nothing is drawn while the block lasts."""
        with self._lock:
            self._clear()
            yield

    def _go_on(self) -> None:
        if self._text:
            self._stop.clear()
            self._thread = threading.Thread(target=self._draw_until_stopped, daemon=True)
            self._thread.start()

    def _end_thread(self) -> None:
        if self._thread:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._clear()

    def _forget(self) -> None:
        self._text, self._thread = "", None

    def _draw_until_stopped(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread, which may wait
        while not self._stop.wait(STEP_S):
            passed_s = time.monotonic() - self._since_s
            if passed_s >= AFTER_S:
                self._draw(f"{_WHEEL[int(passed_s / STEP_S) % 4]} {self._text} ({units.duration(passed_s)})")

    def _draw(self, text: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # the terminal has gone
            sys.stderr.write(_CLEAR + _cut(text, (os.get_terminal_size(2).columns or COLUMNS) - 1))
            sys.stderr.flush()
            self._is_drawn = True

    def _clear(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(_CLEAR)
                sys.stderr.flush()


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _cut(text: str, columns: int) -> str:
    """As much of the text as fits on a line."""
    for place, letter in enumerate(text):
        columns -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if columns < 0:
            return text[:place]
    return text
