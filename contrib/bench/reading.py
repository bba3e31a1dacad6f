"""Reads a file as a backup program does, and tells how fast."""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import time
from pathlib import Path

MIB = 1 << 20
FIO_S = 3


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


def random_reads(path: Path, readers: int, direct: bool) -> float:
    """So many readers, of 4 KiB at random places; reads a second."""
    command = ["fio", "--name=r", f"--filename={path}", "--readonly", "--rw=randread", "--bs=4k", "--ioengine=psync"]
    command += [f"--direct={int(direct)}", "--invalidate=0", f"--numjobs={readers}", "--thread", "--group_reporting"]
    command += [f"--runtime={FIO_S}", "--time_based", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


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
