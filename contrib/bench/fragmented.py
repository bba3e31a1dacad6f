"""Measures how long the extents of a large, fragmented disk take: snapmount's first look, and `qemu-img map`."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbd
from peers import HERE, nbd_server, running

SIZE = 800 << 30
CLUSTER = 64 << 10
CLUSTERS = 50_000  # 3 GiB of the host's disk
IN_FLIGHT = 16


def make_image(path: Path) -> None:
    """A qcow2 file with so many clusters, scattered all over the disk."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    places = random.Random(1).sample(range(SIZE // CLUSTER), CLUSTERS)
    data = nbd.Buffer.from_bytearray(bytearray(b"x" * 4096))
    with nbd_server(path, "qcow2", writable=True) as socket:
        handle = nbd.NBD()
        handle.connect_unix(str(socket))
        for place in sorted(places):
            while handle.aio_in_flight() >= IN_FLIGHT:
                handle.poll(-1)
            handle.aio_pwrite(data, place * CLUSTER)
        while handle.aio_in_flight():
            handle.poll(-1)
        handle.shutdown()


def of_view(socket: Path) -> float:
    """Read the map in a mount that nobody has looked into before; the seconds it takes."""
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as mountpoint:
        command = [sys.executable, str(HERE / "mount_export.py"), mountpoint, str(socket), ""]
        with running(command, lambda: os.path.ismount(mountpoint)):
            begin = time.perf_counter()
            Path(mountpoint, "disk.map").read_bytes()
            return time.perf_counter() - begin


def by_qemu_img(*image: str | Path) -> float:
    """The seconds that `qemu-img map` takes."""
    begin = time.perf_counter()
    subprocess.run(["qemu-img", "map", "--output=json", *image], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(repeat: int) -> dict[str, list[float]]:
    """Seconds, of each way to have the map, `repeat` times, interleaved."""
    image = Path("/var/tmp/snapmount-bench-fragmented")
    with contextlib.ExitStack() as stack:
        stack.callback(image.unlink, missing_ok=True)
        make_image(image)
        socket = stack.enter_context(nbd_server(image, "qcow2"))
        ways: dict[str, Callable[[], float]] = {
            "snapmount": lambda: of_view(socket),
            "qemu-img map, of the export": lambda: by_qemu_img(f"nbd+unix:///?socket={socket}"),
            "qemu-img map, of the file": lambda: by_qemu_img("-U", "-f", "qcow2", image),
        }
        figures: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeat):
            for way, seconds in ways.items():
                figures[way].append(seconds())
    return figures


def report(figures: dict[str, list[float]]) -> str:
    """The medians, and how many times as fast snapmount is."""
    medians = {way: statistics.median(seconds) for way, seconds in figures.items()}
    lines = [f"the map of {SIZE >> 30} GiB with {CLUSTERS:,} scattered clusters, qcow2"]
    for way, median in medians.items():
        lines.append(f"  {way:30}{median:>8.2f} s" + f"{median / medians['snapmount']:>8.2f}" * (way != "snapmount"))
    return "\n".join(lines)
