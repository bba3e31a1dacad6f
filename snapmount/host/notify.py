"""Speaks to the service manager that has started us: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"


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
