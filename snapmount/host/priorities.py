"""Priorities for what is written to systemd's journal: sd-daemon(3)."""

from __future__ import annotations

import logging
import os

from .logs import PrintableFormatter

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def has_journal() -> bool:
    """Whether standard error goes to the journal: JOURNAL_STREAM in systemd.exec(5)."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prioritised(level: int, text: str) -> str:
    """The text, with the level's priority before each line."""
    priority = next((number for least, number in _PRIORITIES if level >= least), _DEBUG)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class JournalFormatter(PrintableFormatter):
    """For a handler that writes to the journal, which has the time already."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return prioritised(record.levelno, super().format(record))
