"""Mounts raw image files as snapmount does those of a VM that is shut off, until SIGTERM or an unmount.

For tests, Python stands still from SIGUSR1 to SIGUSR2.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

import trio
from mount_export import serve

from snapmount.images import raw
from snapmount.publish.fuse import filesystem


async def not_hastened(_operations: filesystem.Operations, _inode: int) -> None:
    """In the place of Operations.hasten()."""


def stand_still(*_: object) -> None:
    received: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _frame: received.append(number))
    while not received:
        time.sleep(0.01)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read-timeout", metavar="SECONDS", type=float, default=30.0)
    parser.add_argument("--slow", action="store_true", help="read by Python alone")
    parser.add_argument("mountpoint")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    if arguments.slow:
        filesystem.Operations.hasten = not_hastened  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, stand_still)
    opened = [raw.opened(Path(file).name, file, arguments.read_timeout) for file in arguments.files]
    trio.run(serve, arguments.mountpoint, opened)
