"""Mounts raw image files as snapmount does those of a VM that is shut off, until SIGTERM or an unmount.

For tests, Python stands still from SIGUSR1 to SIGUSR2, and SIGHUP closes the images, as when the snapshot is lost.
"""

from __future__ import annotations

import argparse
import gc
import signal
from pathlib import Path

import trio
from mount_export import serve

from snapmount.core.qcow2layout import CLUSTER_BYTES
from snapmount.images import raw
from snapmount.images.raw import FileImage
from snapmount.publish.fuse import filesystem


async def not_hastened(_operations: filesystem.Operations, _inode: int) -> None:
    """In the place of Operations.hasten()."""


def stand_still(*_: object) -> None:
    """SIGUSR2 is blocked: Python would not call a handler of it within this one if both have come at once."""
    signal.sigwait({signal.SIGUSR2})


def close_all(*_: object) -> None:
    for each in gc.get_objects():
        if isinstance(each, FileImage):
            each.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read-timeout", metavar="SECONDS", type=float, default=30.0)
    parser.add_argument("--slow", action="store_true", help="read by Python alone")
    parser.add_argument("--cluster-size", metavar="BYTES", type=int, default=CLUSTER_BYTES, help="of the qcow2 files")
    parser.add_argument("mountpoint")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    if arguments.slow:
        filesystem.Operations.hasten = not_hastened  # type: ignore[method-assign]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGUSR1, stand_still)
    signal.signal(signal.SIGHUP, close_all)
    opened = [raw.opened(Path(file).name, file, arguments.read_timeout) for file in arguments.files]
    trio.run(serve, arguments.mountpoint, opened, arguments.cluster_size)
