"""How what is logged is written: names from outside, which it quotes, cannot steer the terminal that shows it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ..core import names

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # of a snapshot's log


class PrintableFormatter(logging.Formatter):
    """One line a message, whatever it quotes, and one for each line of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return names.printable(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "\n".join(map(names.printable, super().formatException(ei).split("\n")))


class Problems:
    """Logs what keeps something from being done that is tried again and again: the same problem once."""

    def __init__(self, logger: logging.Logger, text: str, level: int = logging.WARNING) -> None:
        """The text has a %s for the problem."""
        self._logger, self._text, self._level = logger, text, level
        self._last: str | None = None

    def met(self, problem: str) -> None:
        """This one has been met, for the first time perhaps."""
        if problem != self._last:
            self._last = problem
            self._logger.log(self._level, self._text, problem)

    def over(self) -> None:
        """It could be done: a problem that is met from now on is a new one."""
        self._last = None


class Stream(Protocol):
    """Where text can be written to."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


def log_to(stream: Stream, level: int, form: str) -> None:
    """Log to the stream, and nowhere else, from this level on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter(form))
    logging.basicConfig(handlers=[handler], level=level, force=True)


def replace_standard_streams(descriptor: int) -> None:
    """Read nothing from now on, and write to the descriptor."""
    with Path(os.devnull).open("rb") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
