"""Measures snapmount's mount against its peers, on one NBD server, interleaved; prints medians and ratios.

Every row is measured for each peer in turn, as often as --repeat says: a change of the machine's speed meets all.
The pages of the file are dropped before each cold row, and their memory has been used before: its first touch is slow
on virtual machines, whatever the reader.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fragmented
import guest
import increments
import luns
import storage
import thin
from peers import PEERS, Shown, nbd_server, resident_bytes
from reading import FIO_S, MIB, drop, make_image, sequential

SPARSE_SIZE = 100 << 30
SPARSE_DATA = 12 * MIB


def cold(shown: Shown) -> float:
    drop(shown.path)
    return sequential(shown.path)


def direct(shown: Shown) -> float:
    return sequential(shown.path, direct=True)


def re_read(shown: Shown) -> float:
    sequential(shown.path)
    return sequential(shown.path)


def parallel(shown: Shown, readers: int = 8) -> float:
    """Eight readers, each of its own part."""
    drop(shown.path)
    size = shown.path.stat().st_size
    part = size // readers // MIB * MIB
    threads = [
        threading.Thread(target=sequential, args=(shown.path,), kwargs={"start": n * part, "stop": (n + 1) * part})
        for n in range(readers)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return readers * part / (time.perf_counter() - begin)


def random_reads(depth: int) -> Callable[[Shown], float]:
    def measure(shown: Shown) -> float:
        command = [
            "fio",
            "--name=r",
            f"--filename={shown.path}",
            "--readonly",
            "--rw=randread",
            "--bs=4k",
            "--direct=1",
        ]
        command += ["--ioengine=libaio", f"--iodepth={depth}", f"--runtime={FIO_S}", "--time_based"]
        done = subprocess.run([*command, "--output-format=json"], capture_output=True, check=True)
        return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])

    return measure


def sparse_copy(shown: Shown) -> float:
    """cp --sparse=auto; copies a second.  A peer that shows no holes is given up after a part of the time."""
    begin = time.perf_counter()
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["cp", "--sparse=auto", shown.path, "/var/tmp/snapmount-bench-copy"], check=True, timeout=20)
    Path("/var/tmp/snapmount-bench-copy").unlink()
    return 1 / (time.perf_counter() - begin)


ROWS: dict[str, tuple[str, Callable[[Shown], float]]] = {
    "cold sequential, 1 MiB": ("MiB/s", cold),
    "direct sequential, 1 MiB": ("MiB/s", direct),
    "re-read, 1 MiB": ("MiB/s", re_read),
    "random 4 KiB, depth 1": ("IOPS", random_reads(1)),
    "random 4 KiB, depth 16": ("IOPS", random_reads(16)),
    "8 sequential readers": ("MiB/s", parallel),
}


def measure(socket: Path, size: int, rows: list[str], repeat: int) -> dict[str, dict[str, list[float]]]:
    """Each row of each peer, `repeat` times, interleaved."""
    figures: dict[str, dict[str, list[float]]] = {row: {peer: [] for peer in PEERS} for row in rows}
    figures["resident memory"] = {peer: [] for peer in PEERS}
    with contextlib.ExitStack() as stack:
        shown = {peer: stack.enter_context(show(socket, "", size)) for peer, show in PEERS.items()}
        for each in shown.values():
            sequential(each.path)  # use the page cache's memory once
        for row in rows:
            for _ in range(repeat):
                for peer, each in shown.items():
                    figures[row][peer].append(ROWS[row][1](each))
        for peer, each in shown.items():
            figures["resident memory"][peer].append(resident_bytes(each.pid))
    return figures


def ceilings(socket: Path, image: Path, repeat: int) -> dict[str, float]:
    """What bounds all of them, in bytes a second."""
    copies, reads = [], []
    for _ in range(repeat):
        begin = time.perf_counter()
        subprocess.run(["nbdcopy", f"nbd+unix:///?socket={socket}", "null:"], check=True)
        copies.append(image.stat().st_size / (time.perf_counter() - begin))
        reads.append(sequential(image))
    return {"nbdcopy": statistics.median(copies), "pread of the origin": statistics.median(reads)}


def make_sparse(path: Path) -> None:
    with path.open("wb") as f:
        f.truncate(SPARSE_SIZE)
        for place in (SPARSE_SIZE // 100, SPARSE_SIZE // 2):
            f.seek(place)
            f.write(os.urandom(SPARSE_DATA // 2))


def sparse_figures(image: Path, repeat: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {peer: [] for peer in PEERS}
    with nbd_server(image) as socket, contextlib.ExitStack() as stack:
        shown = {peer: stack.enter_context(show(socket, "", SPARSE_SIZE)) for peer, show in PEERS.items()}
        for _ in range(repeat):
            for peer, each in shown.items():
                if peer != "nbdfuse" or not figures[peer]:  # one time-out tells as much as five
                    figures[peer].append(sparse_copy(each))
    return figures


def report(figures: dict[str, dict[str, list[float]]], bounds: dict[str, float]) -> str:
    units = {row: unit for row, (unit, _) in ROWS.items()} | {"resident memory": "MiB", "sparse copy, 100 GiB": "1/s"}
    lines = [f"{'':26}{'':>7}" + "".join(f"{peer:>21}" for peer in PEERS) + f"{'ratio to best':>16}"]
    for row, by_peer in figures.items():
        medians = {peer: statistics.median(values) for peer, values in by_peer.items()}
        best = max(value for peer, value in medians.items() if peer != "snapmount")
        scale = MIB if units[row].startswith("MiB") else 1
        cells = "".join(
            f"{value / scale:>21,.2f}" if value < 100 else f"{value / scale:>21,.0f}" for value in medians.values()
        )
        ratio = "" if row == "resident memory" else f"{medians['snapmount'] / best:.2f}"
        lines.append(f"{row:26}{units[row]:>7}{cells}{ratio:>16}")
    lines += [f"ceiling: {name} {value / MIB:,.0f} MiB/s" for name, value in bounds.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each row and peer (default: 5)")
    parser.add_argument("--size", type=int, default=512, help="MiB of the disk (default: 512)")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument(
        "rows",
        nargs="*",
        help=f"of {', '.join(ROWS)}, iscsi, sparse copy, qcow2, map, guest, storage, increments (default: all)",
    )
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.rows or any(word in row for word in arguments.rows)]
    image = Path("/var/tmp/snapmount-bench-image")
    sparse = Path("/var/tmp/snapmount-bench-sparse")
    try:
        make_image(image, arguments.size * MIB)
        with nbd_server(image) as socket:
            figures = measure(socket, arguments.size * MIB, rows, arguments.repeat)
            bounds = ceilings(socket, image, arguments.repeat)
        over_iscsi = (
            luns.all_figures(image, arguments.repeat) if not arguments.rows or "iscsi" in arguments.rows else {}
        )
        if not arguments.rows or "sparse copy" in arguments.rows:
            make_sparse(sparse)
            figures["sparse copy, 100 GiB"] = sparse_figures(sparse, arguments.repeat)
        copies = (
            thin.measure(arguments.repeat, arguments.size) if not arguments.rows or "qcow2" in arguments.rows else {}
        )
        maps = fragmented.measure(arguments.repeat) if not arguments.rows or "map" in arguments.rows else {}
        guests = guest.measure(arguments.repeat) if not arguments.rows or "guest" in arguments.rows else {}
        stored = storage.measure(arguments.repeat) if not arguments.rows or "storage" in arguments.rows else {}
        changed = increments.measure(arguments.repeat) if not arguments.rows or "increments" in arguments.rows else {}
    finally:
        image.unlink(missing_ok=True)
        sparse.unlink(missing_ok=True)
    print(report(figures, bounds))
    if over_iscsi:
        print(luns.report(over_iscsi))
    if copies:
        print(thin.report(copies))
    if maps:
        print(fragmented.report(maps))
    if guests:
        print(guest.report(guests))
    if stored:
        print(storage.report(stored))
    if changed:
        print(increments.report(changed))
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        Path(arguments.json).write_text(
            json.dumps(
                {
                    "machine": machine,
                    "figures": figures,
                    "ceilings": bounds,
                    "iscsi": over_iscsi,
                    "qcow2": copies,
                    "map": maps,
                    "guest": guests,
                    "storage": stored,
                    "increments": changed,
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
