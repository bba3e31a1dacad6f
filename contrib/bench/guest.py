"""Measures what a snapshot costs the guest, and how soon it can be read: with a real VM, the test suite's.

The guest writes 512 bytes at a time at random places of two disks, each write when the one before has completed; it
tells ten times a second how many it has made and how long the longest took.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers import PEERS
from reading import sequential

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from tests.rig import libvirtd, vm

WINDOW_S = 4.0
DISK_BYTES = 256 << 20
PIECE = 16 << 20


@dataclass(frozen=True)
class Writes:
    """What the guest's writes took in one window of time."""

    mean_us: float
    tail_us: float  # the longest in a tenth of a second: the median
    longest_us: float


def longest_us(output: str) -> list[int]:
    """The longest writes, one in each tenth of a second, of which the guest tells in these lines."""
    return [int(each) for each in re.findall(r"longest_us=(\d+)", output)]


def window(guest: vm.VM, for_s: float = WINDOW_S) -> Writes:
    """Watch the guest for a while."""
    guest.keeps_writing()
    printed, first, begin = len(guest.output()), guest.written(), time.perf_counter()
    time.sleep(for_s)
    guest.keeps_writing()
    seconds = time.perf_counter() - begin
    longest = longest_us(guest.output()[printed:])
    return Writes(seconds / (guest.written() - first) * 1e6, statistics.median(longest), max(longest))


@contextlib.contextmanager
def reading(paths: Sequence[Path], piece: int = PIECE, at_most: float = math.inf) -> Iterator[list[float]]:
    """Read pieces of the files, all of one size, in turn, over and over, past the page cache, at no more bytes a second
    than that; afterwards the list has the speed.
    """
    stop, speeds, size = threading.Event(), [0.0], paths[0].stat().st_size

    def read() -> None:
        total, begin = 0, time.perf_counter()
        while not stop.wait(begin + total / at_most - time.perf_counter()):
            number, file = divmod(total // piece, len(paths))
            start = number * piece % size
            sequential(paths[file], direct=True, start=start, stop=start + piece)
            total += piece
        speeds[0] = total / (time.perf_counter() - begin)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield speeds
    finally:
        stop.set()
        thread.join()


def snapmount(*words: str | Path) -> str:
    """What the command prints."""
    command = [str(Path(sys.executable).parent / "snapmount"), *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def first_byte(guest: vm.VM, mountpoint: str) -> float:
    """Take a snapshot and read its first byte; the seconds from the command on."""
    begin = time.perf_counter()
    snapmount(guest.name, mountpoint)
    with Path(mountpoint, "vda.raw").open("rb", buffering=0) as f:
        f.read(1)
    return time.perf_counter() - begin


def one_round(guest: vm.VM, figures: dict[str, list[float]]) -> None:
    """Every figure once."""

    def note(row: str, value: float) -> None:
        figures.setdefault(row, []).append(value)

    def watch(phase: str) -> None:
        writes = window(guest)
        note(f"guest's write, mean, {phase} (us)", writes.mean_us)
        note(f"guest's write, longest, {phase} (us)", writes.longest_us)

    watch("no snapshot")
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as mountpoint:
        note("command to first byte (s)", first_byte(guest, mountpoint))
        try:
            watch("idle snapshot")
            disk = json.loads(snapmount("show", "--json", guest.name))["disks"][0]
            socket = Path(disk["nbd_uri"].partition("socket=")[2])
            for peer, show in PEERS.items():
                with contextlib.ExitStack() as stack:
                    if peer == "snapmount":
                        path = Path(mountpoint) / disk["file"]
                    else:
                        path = stack.enter_context(show(socket, disk["name"], DISK_BYTES)).path
                    with reading([path]) as speeds:
                        watch(f"read by {peer}")
                    note(f"that reader's speed, {peer} (MiB/s)", speeds[0] / (1 << 20))
        finally:
            begin = time.perf_counter()
            snapmount("delete", guest.name)
            note("delete (s)", time.perf_counter() - begin)


def measure(repeat: int) -> dict[str, list[float]]:
    """All figures of a guest, `repeat` times."""
    figures: dict[str, list[float]] = {}
    disks = [vm.Disk(f"vd{letter}", kind, DISK_BYTES) for letter, kind in zip("ab", ("raw", "qcow2"), strict=True)]
    with libvirtd.running(), vm.running(f"{vm.PREFIX}-bench", disks, command_line="snapmount.seed=7") as guest:
        guest.keeps_writing(100)
        for _ in range(repeat):
            one_round(guest, figures)
    return figures


def report(figures: dict[str, list[float]]) -> str:
    """The medians."""
    return "\n".join(f"{row:60}{statistics.median(values):>12,.2f}" for row, values in figures.items())
