"""How what is logged is written: names from outside, which it quotes, cannot steer the terminal that shows it."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TextIO

from .core import names


class PrintableFormatter(logging.Formatter):
    """One line a message, whatever it quotes, and one for each line of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return names.printable(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "\n".join(map(names.printable, super().formatException(ei).split("\n")))


def log_to(stream: TextIO, level: int, form: str) -> None:
    """Log to the stream, and nowhere else, from this level on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter(form))
    logging.basicConfig(handlers=[handler], level=level, force=True)
