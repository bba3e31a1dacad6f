"""A VM may have many disks: QEMU's NBD server, which takes 100 connections, answers for all of them."""

from __future__ import annotations

import contextlib
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from snapmount.images import nbd
from snapmount.images.nbd import Budget, NbdImage

from ..rig.libvirtd import wait_for

QEMU_TAKES = 100
CONTENT = random.Random(1).randbytes(1 << 20)
READ_S = 10.0


@contextlib.contextmanager
def qemu(names: list[str]) -> Iterator[str]:
    """QEMU's NBD server, with an export of each name; yields the socket."""
    with tempfile.TemporaryDirectory(prefix="snapmount-") as directory:  # tmp_path may be too long for a unix socket
        image, socket = Path(directory, "image"), Path(directory, "socket")
        image.write_bytes(CONTENT)
        server = f"addr.type=unix,addr.path={socket},max-connections={QEMU_TAKES}"
        command = ["qemu-storage-daemon", "--nbd-server", server]
        for name in names:
            command += ["--blockdev", f"raw,node-name={name},read-only=on,file.driver=file,file.filename={image}"]
            command += ["--export", f"nbd,id={name},node-name={name},name={name}"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                wait_for(socket.exists, "QEMU listens")
                yield str(socket)
            finally:
                process.terminate()


async def read(image: NbdImage, offset: int) -> None:
    assert await image.read(offset, 4096) == CONTENT[offset : offset + 4096]


@pytest.mark.parametrize("disks", [26, 60])
async def test_all_of_many_disks_are_read_by_all_ways_at_once(disks: int) -> None:
    names = [f"vd{number}" for number in range(disks)]
    budget = Budget(disks)
    with qemu(names) as socket:
        async with contextlib.AsyncExitStack() as stack:
            images = [await stack.enter_async_context(nbd.opened(name, socket, name, READ_S, budget)) for name in names]
            watching = await stack.enter_async_context(trio.open_nursery())
            watching.start_soon(nbd.wait_until_gone, socket, names[0])
            async with trio.open_nursery() as nursery:
                for image in images:
                    for _ in range(nbd.DIRECT_WAYS):
                        nursery.start_soon(image.direct)
                    nursery.start_soon(image.extents)
                    for number in range(nbd.CONNECTIONS + 1):
                        nursery.start_soon(read, image, number * 4096)
            watching.cancel_scope.cancel()


@pytest.mark.parametrize("disks", [1, 2, 8, 9, 10, 26, 40, 75])
def test_the_connections_of_all_disks_together_are_fewer_than_qemu_takes(disks: int) -> None:
    budget = Budget(disks)
    fetches = min(disks, budget.fetches.total_tokens)
    assert disks * (budget.reads + budget.direct) + fetches + 1 <= QEMU_TAKES
    assert budget.reads >= 1


def test_few_disks_have_as_many_as_are_of_use() -> None:
    assert Budget(1).reads == nbd.CONNECTIONS
    assert Budget(4).direct == nbd.DIRECT_WAYS * nbd.DIRECT_CONNECTIONS
    assert Budget(26).direct >= 1, "reads past Python"
