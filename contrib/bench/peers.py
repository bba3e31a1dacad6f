"""The ways to show an NBD export as a file that are compared: each a context manager that yields the file's path."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
START_S = 20.0


@dataclass(frozen=True)
class Shown:
    """A file that shows an export, and the process that serves it."""

    path: Path
    pid: int


Peer = Callable[[Path, str, int], "contextlib.AbstractContextManager[Shown]"]  # socket, export, size in bytes


@contextlib.contextmanager
def nbd_server(image: Path, form: str = "raw", *, writable: bool = False) -> Iterator[Path]:
    """qemu-nbd with that image, for many connections; yields its socket."""
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as directory:
        socket = Path(directory) / "nbd.sock"
        command = [
            "qemu-nbd",
            "-f",
            form,
            "-e",
            "64",
            "-t",
            "-k",
            str(socket),
            *([] if writable else ["-r"]),
            str(image),
        ]
        with running(command, socket.exists):
            yield socket


@contextlib.contextmanager
def running(command: list[str], is_ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, from when it is ready until it has been ended."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_S
            while not is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} does not start")
                time.sleep(0.005)
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def snapmount(socket: Path, export: str, size: int) -> Iterator[Shown]:
    """snapmount's own mount of the export, without a VM."""
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as mountpoint:
        path = Path(mountpoint) / f"{export or 'disk'}.raw"
        command = [sys.executable, str(HERE / "mount_export.py"), mountpoint, str(socket), export]
        with running(command, path.exists) as process:
            yield Shown(path, process.pid)


@contextlib.contextmanager
def nbdfuse(socket: Path, export: str, size: int) -> Iterator[Shown]:
    """libnbd's nbdfuse."""
    with tempfile.TemporaryDirectory(prefix="snapmount-bench-") as mountpoint:
        command = ["nbdfuse", "-r", "-C", "4", mountpoint, f"nbd+unix:///{export}?socket={socket}"]
        path = Path(mountpoint) / "nbd"
        with running(command, path.exists) as process:
            yield Shown(path, process.pid)
            subprocess.run(["umount", mountpoint], check=True)


@contextlib.contextmanager
def storage_daemon(socket: Path, export: str, size: int) -> Iterator[Shown]:
    """QEMU's storage daemon: its FUSE export over its NBD client."""
    with tempfile.NamedTemporaryFile(prefix="snapmount-bench-") as file:
        node = {
            "driver": "nbd",
            "node-name": "disk",
            "read-only": True,
            "server": {"type": "unix", "path": str(socket)},
            "export": export,
        }
        export = f"type=fuse,id=fuse,node-name=disk,mountpoint={file.name},writable=off"
        command = ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--export", export]
        with running(command, lambda: os.stat(file.name).st_size == size) as process:
            yield Shown(Path(file.name), process.pid)


PEERS: dict[str, Peer] = {"snapmount": snapmount, "nbdfuse": nbdfuse, "qemu-storage-daemon": storage_daemon}


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
