"""Mounts NBD exports as snapmount does, without a VM, until SIGTERM or an unmount."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import trio

from snapmount.core.image import Image
from snapmount.core.qcow2layout import CLUSTER_BYTES
from snapmount.images import nbd
from snapmount.publish.fuse import filesystem
from snapmount.publish.qcow2 import Qcow2Image
from snapmount.publish.tree import File, MapText, RawImage, Tree


async def serve(
    mountpoint: str, opened: Sequence[AbstractAsyncContextManager[Image]], cluster_bytes: int = CLUSTER_BYTES
) -> bool:
    """Mount these images; whether that was ended by an unmount."""
    unmounted = False
    async with contextlib.AsyncExitStack() as stack:
        images = [await stack.enter_async_context(each) for each in opened]
        files = [File(f"{image.name}.raw", RawImage(image)) for image in images]
        files += [File(f"{image.name}.qcow2", Qcow2Image(image, cluster_bytes)) for image in images]
        files += [File(f"{image.name}.map", MapText(image)) for image in images]
        tree = Tree(files, 0, os.geteuid(), os.getegid())
        view = await stack.enter_async_context(filesystem.mounted(tree, mountpoint, "snapmount:bench"))
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_on_signal, signals, nursery.cancel_scope)
                await view.wait_unmounted()
                unmounted = True
                nursery.cancel_scope.cancel()
    return unmounted


async def main(mountpoint: str, socket: str, exports: list[str], read_timeout_s: float, connections: int) -> bool:
    """Whether it was ended by an unmount."""
    budget = nbd.Budget(len(exports), connections)
    images = [nbd.opened(export or "disk", socket, export, read_timeout_s, budget) for export in exports]
    return await serve(mountpoint, images)


async def end_on_signal(signals: object, scope: trio.CancelScope) -> None:
    async for _ in signals:  # type: ignore[attr-defined]
        scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read-timeout", metavar="SECONDS", type=float, default=30.0)
    parser.add_argument(
        "--connections", metavar="N", type=int, default=nbd.MOST_CONNECTIONS, help="at most, to the server"
    )
    parser.add_argument("--times", metavar="N", type=int, default=1, help="mount it anew after an unmount")
    parser.add_argument("mountpoint")
    parser.add_argument("socket", help="a unix socket")
    parser.add_argument("exports", nargs="+", help="their names; the default export's is empty")
    arguments = parser.parse_args()
    for _ in range(arguments.times):
        if not trio.run(
            main,
            arguments.mountpoint,
            arguments.socket,
            arguments.exports,
            arguments.read_timeout,
            arguments.connections,
        ):
            break
