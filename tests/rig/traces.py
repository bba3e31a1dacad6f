"""What a snapshot leaves on the host while it lives, and must not leave afterwards."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

RUNTIME = Path("/run/snapmount")
SCRATCH = Path("/var/lib/libvirt/snapmount")
SOCKETS = Path("/var/lib/libvirt/qemu")
PROCESSES = r"bin/snapmount |^snapmount: "  # a pattern for pgrep -f


def found() -> list[str]:
    """All traces of snapshots on this host, in words."""
    traces = [f"mount: {line}" for line in mounts()]
    traces += [f"directory: {path}" for path in (RUNTIME, SCRATCH) if path.exists()]
    traces += [f"socket: {path}" for path in SOCKETS.glob("domain-*/snapmount-*")]
    servers = subprocess.run(["pgrep", "-a", "-f", PROCESSES], capture_output=True, text=True).stdout
    traces += [f"process: {line}" for line in servers.splitlines()]
    traces += [f"scratch VM: {path.stem}" for path in Path("/run/libvirt/qemu").glob("*-scratch-*.pid")]
    traces += [f"tgtd: {pid}" for pid in tgtds()]
    traces += [f"storage daemon: {pid}" for pid in storage_daemons()]
    traces += [f"loop device: {path}" for path in loops()]
    return traces


def records() -> list[Path]:
    """The records of all snapshots, of those too that outlive a restart of the host."""
    return [*RUNTIME.glob("*/record.json"), *SCRATCH.glob("records-*/*/record.json")]


def mounts() -> list[str]:
    """The lines of /proc/mounts that are views."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [line for line in lines if re.match(r"snapmount:\S*:[0-9a-f]{8} ", line)]


def tgtds() -> Iterator[int]:
    """The processes of our tgtds, by their control socket."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(f"TGT_IPC_SOCKET={path}".encode() in environment.read_bytes() for path in (RUNTIME, SCRATCH)):
                yield int(environment.parent.name)


def storage_daemons() -> Iterator[int]:
    """The processes of the source `offline`: they have no name of their own."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if name.read_text().startswith("qemu-storage-d"):
                yield int(name.parent.name)


def loops() -> Iterator[str]:
    """Loop devices over files of a view."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith((str(RUNTIME), str(SCRATCH))):
                yield backing.parents[1].name
