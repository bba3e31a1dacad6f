"""What a snapshot leaves on the host while it lives, and must not leave afterwards."""

from __future__ import annotations

import subprocess
from pathlib import Path

RUNTIME = Path("/run/snapmount")
SCRATCH = Path("/var/lib/libvirt/snapmount")
SOCKETS = Path("/var/lib/libvirt/qemu")


def found() -> list[str]:
    """All traces of snapshots on this host, in words."""
    traces = [f"mount: {line}" for line in Path("/proc/mounts").read_text().splitlines() if "fuse.snapmount" in line]
    traces += [f"directory: {path}" for path in (RUNTIME, SCRATCH) if path.exists()]
    traces += [f"socket: {path}" for path in SOCKETS.glob("domain-*/snapmount-*")]
    servers = subprocess.run(["pgrep", "-a", "-f", r"bin/snapmount "], capture_output=True, text=True).stdout
    traces += [f"process: {line}" for line in servers.splitlines()]
    return traces
