"""Measures reads over iSCSI: a LUN on snapmount's mount of an NBD export, against one on the export's own file.

Both are LUNs of one target, read in turn by QEMU's initiator (libiscsi).  The kernel's target is measured in a VM with
the distribution's kernel, as the tests do; run within it, this program prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import trio
from peers import nbd_server, snapmount
from reading import MIB, make_image

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from snapmount.core.iscsi import LOOPBACK, Lun, Portal, Target
from snapmount.publish import iscsi
from tests.rig import libiscsi, stock_kernel

RUNTIME = Path("/run/snapmount-bench")
BACKENDS = ("tgt", "lio")
ROWS = {"256 KiB, depth 8": (256 << 10, 8), "4 KiB, depth 1": (4 << 10, 1), "4 KiB, depth 16": (4 << 10, 16)}
MOST_BYTES = {4 << 10: 16 * MIB}  # small reads need not see all of the disk
VM_S = 1800.0


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """The file on a read-only mount, as the view is one."""
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as directory:
        place = Path(directory, path.name)
        place.touch()
        subprocess.run(["mount", "--bind", path, place], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
            yield place
        finally:
            subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def published(backend: str, files: list[Path], size: int) -> Iterator[list[str]]:
    """The files as LUNs; yields their URLs."""
    directory = RUNTIME / "0badbe9c"
    directory.mkdir(mode=0o700, parents=True)
    luns = tuple(Lun(n, f"vd{n}", size, f"{n:032x}", f"bench-{n}") for n in range(1, len(files) + 1))
    portal = Portal(LOOPBACK, libiscsi.free_port())
    target = Target("iqn.2024-08.internal.snapmount:bench.0badbe9c", (portal,), luns, ())
    who = iscsi.new_credentials(None, mutual=False)
    try:
        trio.run(iscsi.publish, backend, directory, target, [str(file) for file in files], who)
        yield [f"iscsi://{who.user}%{who.secret}@{portal}/{target.iqn}/{lun.number}" for lun in luns]
    finally:
        trio.run(iscsi.withdraw, backend, directory, target)
        shutil.rmtree(RUNTIME)


def speed(url: str, block: int, depth: int, size: int) -> float:
    """Read the disk's first part; bytes a second."""
    total = min(size, MOST_BYTES.get(block, size))
    command = ["qemu-img", "bench", "-f", "raw", "-c", str(total // block), "-d", str(depth), "-s", str(block), url]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    seconds = re.search(r"completed in ([0-9.]+) seconds", said)
    assert seconds, said
    return total / float(seconds[1])


def measure(backend: str, image: Path, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Each row for the view and for the file, interleaved."""
    size = image.stat().st_size
    figures: dict[str, dict[str, list[float]]] = {row: {"view": [], "file": []} for row in ROWS}
    with (
        nbd_server(image) as socket,
        snapmount(socket, "", size) as shown,
        read_only(image) as plain,
        published(backend, [shown.path, plain], size) as (view, file),
    ):
        for row, (block, depth) in ROWS.items():
            for url in (view, file):
                speed(url, block, depth, size)  # the page cache is warm then, for both
            for _ in range(repeat):
                figures[row]["view"].append(speed(view, block, depth, size))
                figures[row]["file"].append(speed(file, block, depth, size))
    return figures


def measure_in_vm(backend: str, repeat: int) -> dict[str, dict[str, list[float]]]:
    said = stock_kernel.run(
        [sys.executable, str(Path(__file__).resolve()), backend, "--repeat", str(repeat), "--size", "64"], VM_S
    )
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the VM did not measure:\n{said}")
    figures: dict[str, dict[str, list[float]]] = json.loads(lines[-1])
    return figures


def all_figures(image: Path, repeat: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The figures of each backend that can be had here, in a VM where need be."""
    found = {}
    for backend in BACKENDS:
        here = trio.run(iscsi.missing, backend) is None
        if here or not stock_kernel.lacking():
            found[backend] = measure(backend, image, repeat) if here else measure_in_vm(backend, repeat)
    return found


def report(figures: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The medians."""
    lines = []
    for backend, rows in figures.items():
        for row, values in rows.items():
            view, file = (statistics.median(values[which]) / MIB for which in ("view", "file"))
            lines.append(
                f"iSCSI by {backend}, {row:18} view {view:8.1f} MiB/s  file {file:8.1f} MiB/s  {view / file:.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="MiB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-", dir="/var/tmp") as directory:
        image = Path(directory, "image")
        make_image(image, arguments.size * MIB)
        print(json.dumps(measure(arguments.backend, image, arguments.repeat)))


if __name__ == "__main__":
    main()
