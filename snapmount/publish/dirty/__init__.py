"""The publisher of dirty extents: a Unix socket in the snapshot's runtime directory, and the client that reads it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOCKET = "dirty"
MODE = 0o600


@contextmanager
def address(directory: Path) -> Iterator[str]:
    """The socket's address while the block lasts: a path that is short enough, however long the directory's is
    (unix(7)).  Raises OSError.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def unbound() -> socket.socket:
    """A socket that is connected or bound to that address."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
