"""What a failed test has left is removed, by whatever force it takes, so that no other test fails for it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from . import libvirtd, traces, vm
from .command import snapmount, snapmount_json


def remove(vms: set[str]) -> None:
    """Remove those VMs and all snapshots; other test VMs stay, without a backup job."""
    with contextlib.suppress(Exception):  # the command is what is tested
        for snapshot in snapmount_json("list", check=False):
            snapmount("delete", "--force", snapshot["id"], check=False)
    if traces.found():
        _kill()
    for name in names():
        if name in vms or "-scratch-" in name:
            _virsh("destroy", name)
            _virsh("undefine", "--checkpoints-metadata", "--nvram", name)
        else:
            _virsh("domjobabort", name)
    _unlink()


def names() -> set[str]:
    """The test VMs that libvirt knows."""
    return {name for name in _virsh("list", "--all", "--name").splitlines() if name.startswith(vm.PREFIX)}


def _kill() -> None:
    """End what serves a snapshot, without its consent, and what reads from it."""
    subprocess.run(["pkill", "-KILL", "-f", traces.PROCESSES])
    for pid in (*traces.tgtds(), *filter(_is_ours, traces.storage_daemons())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for line in traces.mounts():
        mountpoint = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[1])
        subprocess.run(["umount", "--lazy", mountpoint])
    for name in traces.loops():
        subprocess.run(["losetup", "-d", f"/dev/{name}"])


def _is_ours(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"snapmount" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _unlink() -> None:
    for directory in (traces.RUNTIME, traces.SCRATCH):
        shutil.rmtree(directory, ignore_errors=True)
    for socket in traces.SOCKETS.glob("domain-*/snapmount-*"):
        socket.unlink(missing_ok=True)


def _virsh(*args: str) -> str:
    done = subprocess.run(["virsh", "-q", "-c", libvirtd.SYSTEM, *args], capture_output=True, text=True)
    return done.stdout
