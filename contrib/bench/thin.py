"""Measures copies of a disk's qcow2 file against those of its raw file, by cp(1), from a cold cache."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import HERE, nbd_server, running
from reading import MIB, drop, make_image

CLUSTER = 64 << 10
KINDS = ("raw", "qcow2")


def make_scattered(path: Path, size: int) -> None:
    """A file with so many bytes of data: each second cluster."""
    with path.open("wb") as f:
        for number in range(size // CLUSTER):
            f.seek(2 * number * CLUSTER)
            f.write(os.urandom(CLUSTER))
        f.truncate(2 * size)


def copy(path: Path, target: Path) -> float:
    """The seconds that it takes."""
    drop(path)
    begin = time.perf_counter()
    subprocess.run(["cp", "--sparse=auto", path, target], check=True)
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def measure(repeat: int, size_mib: int) -> dict[str, dict[str, list[float]]]:
    """Seconds, by how the data lies and by kind of file, `repeat` times, interleaved."""
    figures: dict[str, dict[str, list[float]]] = {}
    for how, make in {"all data": make_image, "each second cluster": make_scattered}.items():
        with tempfile.TemporaryDirectory(prefix="snapmount-bench-", dir="/var/tmp") as name:
            image, mountpoint, target = Path(name, "image"), Path(name, "mount"), Path(name, "copy")
            mountpoint.mkdir()
            make(image, size_mib * MIB)
            with contextlib.ExitStack() as stack:
                socket = stack.enter_context(nbd_server(image))
                command = [sys.executable, str(HERE / "mount_export.py"), str(mountpoint), str(socket), ""]
                stack.enter_context(running(command, lambda at=mountpoint: os.path.ismount(at)))
                files = {kind: mountpoint / f"disk.{kind}" for kind in KINDS}
                for file in files.values():
                    copy(file, target)  # use the memory once
                rounds = [{kind: copy(file, target) for kind, file in files.items()} for _ in range(repeat)]
            figures[how] = {kind: [each[kind] for each in rounds] for kind in KINDS}
    return figures


def report(figures: dict[str, dict[str, list[float]]]) -> str:
    """The medians, and how many times as fast the qcow2 file is copied."""
    lines = ["a copy of vda.raw, and of vda.qcow2, by cp --sparse=auto"]
    for how, by_kind in figures.items():
        raw, thin = (statistics.median(by_kind[kind]) for kind in KINDS)
        lines.append(f"  {how:24}{raw:>10.2f} s{thin:>10.2f} s{raw / thin:>8.2f}")
    return "\n".join(lines)
