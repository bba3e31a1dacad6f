"""Clones of image files, as the drivers of snapmount.storage make them; no VM is needed."""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from snapmount.core.document import from_document, to_document
from snapmount.core.extents import Extent
from snapmount.core.user import User
from snapmount.storage.driver import Clone, Driver, Task

BLOCK = 4096
ID = "3f2a91bc"
READER = User(65534, 65534, ())


def image(path: Path, blocks: int = 64, seed: int = 1) -> Path:
    """An image file of so many blocks of data, which belongs to the reader."""
    path.write_bytes(random.Random(seed).randbytes(blocks * BLOCK))
    os.chown(path, READER.uid, READER.gid)
    path.chmod(0o600)
    return path


def fragmented(path: Path, extents: int) -> Path:
    """An image file of so many extents, and as many holes: written past the cache, since XFS gives what lies in it more
    blocks than it needs.
    """
    with written(path, range(0, 2 * extents, 2)):
        return path


@contextmanager
def written(path: Path, blocks: Iterable[int]) -> Iterator[None]:
    """Write these blocks of a file, past the cache as QEMU does, and keep it open in the block."""
    data = mmap.mmap(-1, BLOCK)
    data.write(b"x" * BLOCK)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    try:
        for number in blocks:
            os.pwrite(descriptor, data, number * BLOCK)
        yield
    finally:
        os.close(descriptor)


def scribble(path: Path, seed: int, writes: int = 100) -> None:
    """Change an image: write, discard and allocate here and there, as a guest does; then it is on the disk."""
    chance = random.Random(seed)
    with path.open("r+b") as f:
        size = path.stat().st_size
        for _ in range(writes):
            start, length = chance.randrange(size), chance.randrange(1, 4 * BLOCK)
            f.seek(start)
            f.write(chance.randbytes(min(length, size - start)))
        os.fdatasync(f.fileno())
    blocks = size // BLOCK
    for _ in range(5):
        start, length = chance.randrange(blocks) * BLOCK, chance.randrange(1, 4) * BLOCK
        subprocess.run(["fallocate", "-p", "-o", str(start), "-l", str(length), path], check=True)


async def planned(driver: Driver, *origins: Path, snapshot_id: str = ID) -> Clone:
    """The one clone that the driver would make of them, as it comes back from a record."""
    (offer,) = await driver.plan(Task(snapshot_id, list(map(str, origins)), READER))
    return from_document(Clone, json.loads(json.dumps(to_document(offer.clone))))


async def take(driver: Driver, clone: Clone) -> Clone:
    """Make it."""
    await driver.prepare(clone)
    await driver.create(clone)
    return await driver.activate(clone)


@asynccontextmanager
async def taken(driver: Driver, *origins: Path, snapshot_id: str = ID) -> AsyncIterator[Clone]:
    """A clone, which is removed at the end."""
    clone = await planned(driver, *origins, snapshot_id=snapshot_id)
    try:
        yield await take(driver, clone)
    finally:
        await driver.remove(clone)


def differing(older: bytes, newer: bytes) -> set[int]:
    """The numbers of the blocks of the newer image that are not as in the older one, whose end is followed by zeros."""
    older = older[: len(newer)].ljust(len(newer), b"\0")
    starts = range(0, len(newer), BLOCK)
    return {start // BLOCK for start in starts if older[start : start + BLOCK] != newer[start : start + BLOCK]}


def touched(extents: Iterable[Extent]) -> set[int]:
    """The numbers of the blocks that lie in extents."""
    return {block for each in extents for block in range(each.start // BLOCK, -(-each.end // BLOCK))}


def places(directory: Path) -> list[str]:
    """The directories of ours that there are in one of images."""
    return [path.name for path in directory.iterdir() if path.name.startswith(".snapmount-")]


def read(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def run_as(uid: int, *command: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run it as that user, with the group of that number."""
    return subprocess.run(command, user=uid, group=uid, extra_groups=[], capture_output=True)


def run(*command: str | Path) -> str:
    """What the command prints; it must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
