"""Reads a file as a backup program does, and tells how fast."""

from __future__ import annotations

import mmap
import os
import random
import time
from pathlib import Path

MIB = 1 << 20


def sequential(path: Path, block: int = MIB, direct: bool = False, start: int = 0, stop: int | None = None) -> float:
    """Read a part of the file once; the speed in bytes a second."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    descriptor = os.open(path, flags)
    try:
        stop = os.fstat(descriptor).st_size if stop is None else stop
        with mmap.mmap(-1, block) as buffer:
            begin = time.perf_counter()
            for offset in range(start, stop, block):
                if os.preadv(descriptor, [buffer], offset) != min(block, stop - offset):
                    raise OSError(f"a short read at {offset}")
            return (stop - start) / (time.perf_counter() - begin)
    finally:
        os.close(descriptor)


def drop(path: Path) -> None:
    """Drop the file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def make_image(path: Path, size: int) -> None:
    """A file of that many bytes, the same each time, none of them a hole."""
    generator = random.Random(1)
    with path.open("wb") as f:
        for _ in range(size // MIB):
            f.write(generator.randbytes(MIB))
