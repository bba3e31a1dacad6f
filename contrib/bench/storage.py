"""Measures snapshots by storage beside those by pull of the same VM: how long it is paused, what its writes take while
a snapshot lives and while it is read, what reading takes of the processors, and how fast the mount is read beside the
frozen file itself.

Each round begins anew, with images of its own: what a guest writes while there is a clone adds extents to its image.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt
from guest import PIECE, WINDOW_S, longest_us, reading, snapmount, window
from places import DISK_BYTES, KINDS, Place, lacking
from reading import MIB, drop, random_reads, sequential

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from tests.rig import libvirtd, vm
from tests.rig.power import children

SLOW = 100 * MIB  # bytes a second, which a reader of any of the snapshots reaches
BARE_PAUSES = 5  # in each round
TURNS, TURN_S = (
    4,
    2.0,
)  # of watching the guest without and with a reader, so that both meet a change of the machine's speed
MOST_PAUSE_S = "60"
TAKE = {"pull": ["--source", "pull"], "storage": ["--source", "storage", "--max-pause", MOST_PAUSE_S]}
LIVES = {"idle": 0.0, "read slowly": SLOW, "read flat out": math.inf}  # and the reader's bytes a second at most
SETTLED = 3 * 2 * DISK_BYTES // (64 << 10)  # writes at random after which 95 % of the clusters have been written to
WATCHED = ("reflink, few extents", "btrfs", "lvm thin")  # kinds whose guest is watched while a snapshot lives
FORMS = ("raw", "qcow2")  # of the two disks
GIB = 1 << 30
READ = ("reflink, few extents", "btrfs")  # kinds whose frozen raw image is a file

Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Snapshot:
    """One that is mounted."""

    source: str
    views: list[Path]  # of the raw disk and of the qcow2 disk
    server_pid: int


@dataclass(frozen=True)
class Round:
    """One kind of storage, once: a VM on it, and where its figures go."""

    guest: vm.VM
    place: Place
    figures: Figures

    def note(self, row: str, value: float) -> None:
        self.figures.setdefault(row, []).append(value)

    def watch(self, phase: str, for_s: float = WINDOW_S) -> None:
        """What the guest's writes take now."""
        writes = window(self.guest, for_s)
        self.note(f"{phase}, mean us", writes.mean_us)
        self.note(f"{phase}, tail us", writes.tail_us)
        self.note(f"{phase}, longest us", writes.longest_us)

    def pause(self) -> None:
        """Suspend and resume the VM, once its images have been written back, as the drivers see to it."""
        connection = libvirt.open(self.guest.uri)
        try:
            domain = connection.lookupByName(self.guest.name)
            for _ in range(BARE_PAUSES):
                self.guest.keeps_writing()
                for image in self.place.images:
                    _write_back(image)
                begin = time.perf_counter()
                domain.suspend()
                domain.resume()
                self.note("bare pause s", time.perf_counter() - begin)
        finally:
            connection.close()

    @contextlib.contextmanager
    def taken(self, source: str) -> Iterator[Snapshot]:
        """A snapshot by that source."""
        with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as mountpoint:
            printed = len(self.guest.output())
            begin = time.perf_counter()
            told = json.loads(snapmount("--json", *TAKE[source], self.guest.name, mountpoint))
            self.note(f"{source}, take s", time.perf_counter() - begin)
            self.guest.keeps_writing()
            self.note(f"{source}, pause s", told["pause_s"] or 0)
            self.note(f"{source}, longest us at the take", max(longest_us(self.guest.output()[printed:])))
            try:
                views = [Path(mountpoint, each["file"]) for each in told["disks"]]
                yield Snapshot(source, views, told["server"]["pid"])
            finally:
                snapmount("delete", self.guest.name)

    def live(self, snapshot: Snapshot) -> None:
        """Watch the guest while the snapshot is new; then, when few writes are the first to their cluster, while it is
        idle and while it is read, in turns.
        """
        source = snapshot.source
        self.watch(f"{source}, new")
        for _ in range(0, SETTLED, 1000):
            self.guest.keeps_writing(1000)
        for life, bytes_per_s in TURNS * list(LIVES.items()):
            with contextlib.ExitStack() as stack:
                piece = MIB if bytes_per_s == SLOW else PIECE
                speeds = stack.enter_context(reading(snapshot.views, piece, bytes_per_s)) if bytes_per_s else []
                self.watch(f"{source}, {life}", TURN_S)
            for speed in speeds:
                self.note(f"{source}, {life}, bytes a second", speed)

    def work(self, snapshot: Snapshot) -> None:
        """The processor time that reads take of the VM's QEMU, which serves its guest's disks too, and of the processes
        of the snapshot: seconds for 1 GiB of each disk, read while the guest stands still.
        """
        qemu_pid = self.guest.qemu_pid()
        with self.guest.suspended():
            for view, form in zip(snapshot.views, FORMS, strict=True):
                sequential(view, direct=True)
                before = processor_s(qemu_pid), processor_s(*_family(snapshot.server_pid))
                for _ in range(GIB // DISK_BYTES):
                    sequential(view, direct=True)
                after = processor_s(qemu_pid), processor_s(*_family(snapshot.server_pid))
                self.note(f"{snapshot.source}, {form}, s of QEMU", after[0] - before[0])
                self.note(f"{snapshot.source}, {form}, s of snapmount", after[1] - before[1])

    def compare(self, view: Path, frozen: Path) -> None:
        """The view's speeds, and those of the file that it shows, while the guest takes no processor."""
        with self.guest.suspended():
            for row, measure in READS.items():
                self.note(f"{row}, view", measure(view, True, frozen))
                self.note(f"{row}, file", measure(frozen, False, frozen))


def processor_s(*pids: int) -> float:
    """What these processes have had of the processors.  proc_pid_stat(5)"""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    """The process, with all that it has started."""
    return [pid, *(each for child in children(pid) for each in _family(child))]


def _write_back(image: Path) -> None:
    descriptor = os.open(image, os.O_RDONLY)
    os.fdatasync(descriptor)
    os.close(descriptor)


# -- reads -------------------------------------------------------------------------------------------------------------


def _cold(path: Path, _is_view: bool, frozen: Path) -> float:
    """From what the file system lies on."""
    for each in {path, frozen}:
        drop(each)
    return sequential(path)


def _warm(path: Path, is_view: bool, frozen: Path) -> float:
    """From the page cache of the host, past that of the mount."""
    sequential(frozen)
    return sequential(path, direct=is_view)


def _again(path: Path, _is_view: bool, _frozen: Path) -> float:
    sequential(path)
    return sequential(path)


def _random(readers: int) -> Callable[[Path, bool, Path], float]:
    return lambda path, is_view, _: random_reads(path, readers, direct=is_view)


READS: dict[str, Callable[[Path, bool, Path], float]] = {
    "cold, 1 MiB": _cold,
    "warm, 1 MiB": _warm,
    "re-read, 1 MiB": _again,
    "random 4 KiB, 1 reader": _random(1),
    "random 4 KiB, 16 readers": _random(16),
}


# -- all of it ---------------------------------------------------------------------------------------------------------


def one_round(kind: str, figures: Figures) -> None:
    """Every figure of a kind of storage once."""
    with (
        KINDS[kind]() as place,
        vm.running(f"{vm.PREFIX}-bench", place.disks, command_line="snapmount.seed=7") as guest,
    ):
        guest.keeps_writing(1000)
        this = Round(guest, place, figures)
        this.watch("no snapshot")
        for source in TAKE:
            if source == "storage":
                this.pause()
                this.note("extents", place.extents())
            with this.taken(source) as snapshot:
                if kind in WATCHED:
                    this.live(snapshot)
                    this.work(snapshot)
                if kind in READ and source == "storage":
                    this.compare(snapshot.views[0], place.frozen())


def measure(repeat: int) -> dict[str, Figures]:
    """All figures of each kind that this host has, `repeat` times, interleaved."""
    figures: dict[str, Figures] = {kind: {} for kind in KINDS if not lacking(kind)}
    with libvirtd.running():
        for _ in range(repeat):
            for kind, found in figures.items():
                one_round(kind, found)
    return figures


# -- what is printed ---------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], scale: float) -> str:
    """Least, median and most."""
    return " / ".join(f"{scale * each:,.0f}" for each in (min(values), statistics.median(values), max(values)))


def bare_s(figures: Figures) -> list[float]:
    """What it takes to suspend and to resume the VM, in each round."""
    pauses = figures["bare pause s"]
    return [statistics.median(pauses[start : start + BARE_PAUSES]) for start in range(0, len(pauses), BARE_PAUSES)]


def beyond_s(figures: Figures) -> list[float]:
    """How much longer the pauses for a snapshot by storage were, in each round."""
    return [paused - bare for paused, bare in zip(figures["storage, pause s"], bare_s(figures), strict=True)]


def cost_us(figures: Figures, source: str, life: str) -> float:
    """What a reader adds to the mean write of the guest: the median of the turns."""
    idle, read = (figures[f"{source}, {each}, mean us"] for each in ("idle", life))
    return statistics.median(with_reader - without for without, with_reader in zip(idle, read, strict=True))


def _pauses(figures: dict[str, Figures]) -> list[str]:
    heads = ("suspend, resume", "by storage", "beyond that", "longest write: pull", "by storage")
    lines = ["pauses, and the longest write of the guest at the take (ms: least / median / most)"]
    lines += [f"  {'':22}{'extents':>8}" + "".join(f"{head:>25}" for head in heads)]
    for kind, found in figures.items():
        cells = [spread(each, 1e3) for each in (bare_s(found), found["storage, pause s"], beyond_s(found))]
        cells += [spread(found[f"{source}, longest us at the take"], 1e-3) for source in TAKE]
        extents = statistics.median(found["extents"])
        lines.append(f"  {kind:22}{extents:>8,.0f}" + "".join(f"{cell:>25}" for cell in cells))
    return lines


def _writes(kind: str, figures: Figures) -> list[str]:
    lines = [f"the guest's writes, {kind} (medians)"]
    lines += [f"  {'':24}{'mean us':>10}{'tail us':>10}{'longest us':>12}{'reader, MiB/s':>16}"]
    for phase in ("no snapshot", *(f"{source}, {life}" for source in TAKE for life in ("new", *LIVES))):
        cells = [statistics.median(figures[f"{phase}, {what} us"]) for what in ("mean", "tail", "longest")]
        speeds = figures.get(f"{phase}, bytes a second")
        line = f"  {phase:24}{cells[0]:>10,.0f}{cells[1]:>10,.0f}{cells[2]:>12,.0f}"
        lines.append(line + (f"{statistics.median(speeds) / MIB:>16,.0f}" if speeds else ""))
    for life in LIVES:
        if life != "idle":
            added = ", ".join(f"{cost_us(figures, source, life):,.0f} us by {source}" for source in TAKE)
            lines.append(f"  {life}, a reader adds to the mean: {added}")
    return lines


def _work(kind: str, figures: Figures) -> list[str]:
    lines = [f"the processor time that reading 1 GiB takes, {kind} (s, medians)"]
    lines += [f"  {'':16}{'of the VM':>12}{'of snapmount':>16}"]
    for each in (f"{source}, {form}" for source in TAKE for form in FORMS):
        qemu, ours = (statistics.median(figures[f"{each}, s of {which}"]) for which in ("QEMU", "snapmount"))
        lines.append(f"  {each:16}{qemu:>12.2f}{ours:>16.2f}")
    return lines


def _reads(kind: str, figures: Figures) -> list[str]:
    lines = [f"reads, {kind} (medians)", f"  {'':26}{'':8}{'view':>12}{'file':>12}{'ratio':>8}"]
    for row in READS:
        view, file = (statistics.median(figures[f"{row}, {which}"]) for which in ("view", "file"))
        unit, scale = ("IOPS", 1) if "random" in row else ("MiB/s", MIB)
        lines.append(f"  {row:26}{unit:>8}{view / scale:>12,.0f}{file / scale:>12,.0f}{view / file:>8.2f}")
    return lines


def report(figures: dict[str, Figures]) -> str:
    """The pauses, the guest's writes and the reads; and which kinds were not measured, and why."""
    lines = _pauses(figures)
    lines += [f"  {kind:22}not measured: {why}" for kind in KINDS if (why := lacking(kind))]
    for kind in WATCHED:
        lines += _writes(kind, figures[kind]) + _work(kind, figures[kind]) if kind in figures else []
    for kind in READ:
        lines += _reads(kind, figures[kind]) if kind in figures else []
    return "\n".join(lines)
