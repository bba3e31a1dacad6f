"""Speaks to the service manager that has started us: sd_notify(3), and priorities for its journal (sd-daemon(3))."""

from __future__ import annotations

import logging
import os
import socket

from .logs import PrintableFormatter

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def notify(*assignments: str) -> None:
    """Send these, such as READY and "STATUS=text", in one datagram; nothing where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            sock.sendall("\n".join(assignments).encode(errors="backslashreplace"))
    except OSError as error:
        log.warning("the service manager at %s cannot be told: %s", address, error)


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
