"""Mounts NBD exports as snapmount does, without a VM: mount_export.py MOUNTPOINT SOCKET EXPORT...; ends on SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import trio

from snapmount import nbd
from snapmount.core.tree import File, MapText, RawImage, Tree
from snapmount.publish import fuse

READ_TIMEOUT_S = 30.0


async def main(mountpoint: str, socket: str, exports: list[str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        images = [
            await stack.enter_async_context(nbd.opened(export or "disk", socket, export, READ_TIMEOUT_S))
            for export in exports
        ]
        files = [File(f"{image.name}.raw", RawImage(image)) for image in images]
        files += [File(f"{image.name}.map", MapText(image)) for image in images]
        tree = Tree(files, 0, os.geteuid(), os.getegid())
        view = await stack.enter_async_context(fuse.mounted(tree, mountpoint, "snapmount:bench"))
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_on_signal, signals, nursery.cancel_scope)
                await view.wait_unmounted()
                nursery.cancel_scope.cancel()


async def end_on_signal(signals: object, scope: trio.CancelScope) -> None:
    async for _ in signals:  # type: ignore[attr-defined]
        scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
