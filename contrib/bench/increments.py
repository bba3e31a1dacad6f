"""Measures increments of large disks: what `take --since` adds to `take`, how soon it is known what is dirty, and how
long a copy of that takes, beside a full copy and beside what nbdinfo and QEMU's tools do with the same export.

In each round the QEMU of a VM that is paused overwrites some of the disks' data; who looks first changes from round to
round, since QEMU then keeps the tables that it has loaded.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu
from guest import snapmount
from reading import MIB

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from tests.rig import libvirtd, vm
from tests.rig.command import SNAPMOUNT

GIB = 1 << 30
CLUSTER = 64 << 10
USED = 8192  # clusters with data in each disk: 512 MiB
SIZES = {"vda": 100 * GIB, "vdb": 800 * GIB}
CHANGED = {"vda": 50 * MIB // CLUSTER, "vdb": 1}  # clusters
TAKES = {"take": [], "take --checkpoint --since last": ["--checkpoint", "--since", "last"]}
FULL, SINCE = TAKES
COPIES = {  # and the ways to have the same, ours first
    FULL: ("vda.qcow2, by cp", "qemu-img convert"),
    SINCE: ("vda.inc.qcow2, by cp", "nbdinfo, qemu-io -C"),
}
LISTS = ("snapmount dirty", "the file .dirty", "nbdinfo --map")

Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Dirty:
    """What somebody tells of a disk: in bytes, and when."""

    length: int
    first_s: float  # to the first line
    all_s: float


@dataclass(frozen=True)
class Snapshot:
    """One that is mounted."""

    vm_name: str
    mountpoint: Path
    uris: dict[str, str]  # the export of each disk

    def context(self, disk: str) -> str:
        """Of the dirty bitmap in the disk's export, as libvirt calls it."""
        return f"qemu:dirty-bitmap:backup-{disk}"


def used(size: int) -> list[int]:
    """The clusters of a disk of that size that have data."""
    return sorted(random.Random(1).sample(range(size // CLUSTER), USED))


def fill(raw: Path) -> None:
    """Give a disk its data."""
    chance = random.Random(2)
    with raw.open("r+b") as f:
        for number in used(raw.stat().st_size):
            f.seek(number * CLUSTER)
            f.write(chance.randbytes(CLUSTER))


def change(guest: vm.VM, number: int) -> None:
    """Let QEMU overwrite data in the disks, in the round of that number."""
    connection = libvirt.open(guest.uri)
    try:
        domain = connection.lookupByName(guest.name)
        for index, (disk, size) in enumerate(SIZES.items()):
            device = f"/machine/peripheral/virtio-disk{index}/virtio-backend"
            for cluster in random.Random(number).sample(used(size), CHANGED[disk]):
                words = f"write -P {number + 1} {cluster * CLUSTER} {CLUSTER}"
                command = f'qemu-io -d {device} "{words}"'
                libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    finally:
        connection.close()


# -- what is dirty -----------------------------------------------------------------------------------------------------


def by_dirty(snapshot: Snapshot, disk: str) -> Dirty:
    """`snapmount dirty`."""
    first_s, all_s, told = _printed(SNAPMOUNT, "dirty", snapshot.vm_name, "--disk", disk)
    return Dirty(sum(int(line.split()[2]) for line in told.splitlines()), first_s, all_s)


def by_file(snapshot: Snapshot, disk: str) -> Dirty:
    """The file in the mount, as cat(1) reads it."""
    first_s, all_s, told = _printed("cat", str(snapshot.mountpoint / f"{disk}.dirty"))
    return Dirty(sum(each["length"] for each in json.loads(told)), first_s, all_s)


def by_nbdinfo(snapshot: Snapshot, disk: str) -> Dirty:
    """`nbdinfo --map`, which does not tell what is zero."""
    first_s, all_s, told = _printed("nbdinfo", f"--map={snapshot.context(disk)}", snapshot.uris[disk])
    return Dirty(sum(length for _, length in dirty_ranges(told)), first_s, all_s)


def dirty_ranges(told: str) -> list[tuple[int, int]]:
    """Start and length of each dirty extent of which `nbdinfo --map` tells."""
    extents = [line.split() for line in told.splitlines()]
    return [(int(start), int(length)) for start, length, flags, *_ in extents if flags == "1"]


def _printed(*command: str) -> tuple[float, float, str]:
    """The seconds to the first line of a command and to its end, and what it prints."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        first_s = time.perf_counter() - begin
        rest = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return first_s, time.perf_counter() - begin, first + rest


# -- copies ------------------------------------------------------------------------------------------------------------


def by_cp(file: str) -> Callable[[Snapshot, Path], None]:
    """cp(1) of that file of the mount."""
    return lambda snapshot, target: _run("cp", "--sparse=auto", snapshot.mountpoint / file, target)


def by_convert(snapshot: Snapshot, target: Path) -> None:
    """A full copy by qemu-img, of the export."""
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", snapshot.uris["vda"], target)


def by_copy_on_read(snapshot: Snapshot, target: Path) -> None:
    """An increment by QEMU's tools: what is dirty is read through a new image over the export, which keeps it."""
    uri = snapshot.uris["vda"]
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", uri, target)
    told = _printed("nbdinfo", f"--map={snapshot.context('vda')}", uri)[2]
    words = "".join(f"read {start} {length}\n" for start, length in dirty_ranges(told))
    command = ["qemu-io", "-C", "-t", "unsafe", "-f", "qcow2", target]  # as qemu-img convert writes, and cp
    subprocess.run(command, input=words, text=True, stdout=subprocess.DEVNULL, check=True)
    _run("qemu-img", "rebase", "-q", "-u", "-t", "unsafe", "-f", "qcow2", "-b", "", target)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


HOW: dict[str, Callable[[Snapshot, Path], None]] = {
    "vda.qcow2, by cp": by_cp("vda.qcow2"),
    "qemu-img convert": by_convert,
    "vda.inc.qcow2, by cp": by_cp("vda.inc.qcow2"),
    "nbdinfo, qemu-io -C": by_copy_on_read,
}
LISTED: dict[str, Callable[[Snapshot, str], Dirty]] = dict(zip(LISTS, (by_dirty, by_file, by_nbdinfo), strict=True))


# -- all of it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """One round, and where its figures go."""

    guest: vm.VM
    number: int
    figures: Figures

    def note(self, row: str, value: float) -> None:
        self.figures.setdefault(row, []).append(value)

    def in_turn(self, ways: tuple[str, ...]) -> list[str]:
        """The same, beginning with another one in each round."""
        first = self.number % len(ways)
        return [*ways[first:], *ways[:first]]

    @contextmanager
    def taken(self, take: str) -> Iterator[Snapshot]:
        """A snapshot that is taken so."""
        with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as mountpoint:
            begin = time.perf_counter()
            told = json.loads(snapmount("--json", *TAKES[take], self.guest.name, mountpoint))
            self.note(f"{take}, s", time.perf_counter() - begin)
            try:
                uris = {each["name"]: each["nbd_uri"] for each in told["disks"]}
                yield Snapshot(self.guest.name, Path(mountpoint), uris)
            finally:
                snapmount("delete", self.guest.name)

    def look(self, snapshot: Snapshot) -> None:
        """How soon it is known what is dirty, and how much of that is the start of snapmount's program.  Raises
        RuntimeError for an answer that is not right.
        """
        self.note("start s", _printed(SNAPMOUNT, "--version")[1])
        for disk, clusters in CHANGED.items():
            for way in self.in_turn(LISTS):
                dirty = LISTED[way](snapshot, disk)
                if dirty.length != clusters * CLUSTER:
                    raise RuntimeError(f"{way}: {dirty.length} bytes of {disk} are dirty, not {clusters * CLUSTER}")
                self.note(f"{disk}, {way}, first s", dirty.first_s)
                self.note(f"{disk}, {way}, all s", dirty.all_s)

    def copy(self, snapshot: Snapshot, take: str) -> None:
        """What the ways to copy take, and how much they write."""
        with tempfile.TemporaryDirectory(prefix="snapmount-bench-", dir="/var/tmp") as name:
            for way in self.in_turn(COPIES[take]):
                target = Path(name, "copy")
                begin = time.perf_counter()
                HOW[way](snapshot, target)
                self.note(f"{way}, s", time.perf_counter() - begin)
                self.note(f"{way}, bytes", target.stat().st_blocks * 512)
                target.unlink()


def measure(repeat: int) -> Figures:
    """All figures, `repeat` times; and the load of the machine at each round's begin."""
    figures: Figures = {}
    disks = [vm.Disk(disk, "qcow2", size, fill=fill) for disk, size in SIZES.items()]
    with libvirtd.running(), vm.running(f"{vm.PREFIX}-bench", disks, paused=True) as guest:
        with Round(guest, 0, {}).taken(SINCE):
            pass  # the checkpoint that the first round's changes are since
        for number in range(repeat):
            this = Round(guest, number, figures)
            change(guest, number)
            this.note("load", os.getloadavg()[0])
            for take in this.in_turn((FULL, SINCE)):
                with this.taken(take) as snapshot:
                    if take == SINCE:
                        this.look(snapshot)
                    this.copy(snapshot, take)
        snapmount("checkpoints", guest.name, "--keep", "0")
    return figures


def report(figures: Figures) -> str:
    """The medians; in the last column, how many times as long as snapmount each other way takes."""
    median = {row: statistics.median(values) for row, values in figures.items()}
    lines = [f"increments; load {min(figures['load']):.0f} to {max(figures['load']):.0f} (s, medians)"]
    lines += [f"  {take:40}{median[f'{take}, s']:>10.2f}" for take in TAKES]
    lines[-1] += f"{median[f'{SINCE}, s'] / median[f'{FULL}, s']:>18.2f}"
    lines.append(f"  {'what is dirty':40}{'first line':>10}{'all':>10}")
    lines.append(f"    {'(snapmount --version)':38}{'':>10}{median['start s']:>10.2f}")
    for disk, size in SIZES.items():
        lines.append(f"    {size // GIB} GiB, {CHANGED[disk] * CLUSTER // 1024:,} KiB dirty")
        ours = median[f"{disk}, {LISTS[0]}, all s"]
        for way in LISTS:
            first_s, all_s = (median[f"{disk}, {way}, {which} s"] for which in ("first", "all"))
            lines.append(f"      {way:36}{first_s:>10.2f}{all_s:>10.2f}" + f"{all_s / ours:>8.2f}" * (way != LISTS[0]))
    lines.append(f"  {'a copy':40}{'MiB':>10}{'s':>10}")
    for ways in COPIES.values():
        ours = median[f"{ways[0]}, s"]
        for way in ways:
            taken_s, moved = median[f"{way}, s"], median[f"{way}, bytes"] / MIB
            lines.append(f"    {way:38}{moved:>10,.1f}{taken_s:>10.2f}" + f"{taken_s / ours:>8.2f}" * (way != ways[0]))
    return "\n".join(lines)
