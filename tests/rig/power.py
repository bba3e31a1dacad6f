"""A power cut of the host, as far as it can be played: no process, no mount, nothing in /run is left, all else is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from . import traces, vm
from .libvirtd import wait_for


def cut(guest: vm.VM, *, keeps_runtime: bool, processes: Iterable[int] = ()) -> None:
    """What it leaves of all snapshots of the guest.  The runtime directory may be on a disk, and be kept.

    `processes` are killed too: commands that are under way.
    """
    scratch_vms = [Path(path).stem for path in Path("/run/libvirt/qemu").glob(f"{guest.name}-scratch-*.pid")]
    for pid in [*processes, *_standbys(), *servers(), *traces.tgtds(), guest.qemu_pid()]:
        _kill(pid)
    wait_for(lambda: guest.state() == "shut off", "libvirt has noticed")
    for name in scratch_vms:
        guest.virsh("destroy", name)
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.startswith(f"snapmount:{guest.name}:"):
            subprocess.run(["umount", "-l", line.split()[1]], check=True)
    if not keeps_runtime:
        shutil.rmtree(traces.RUNTIME, ignore_errors=True)
    for record in traces.records():
        of_another_boot(record)
    for entry in traces.SCRATCH.glob("snapmount-*.json"):
        of_another_boot(entry)
        _put_back(entry)


def servers() -> list[int]:
    """The processes that serve snapshots, by their records."""
    return [json.loads(record.read_text())["server"]["pid"] for record in traces.records()]


def _standbys() -> list[int]:
    records = (json.loads(record.read_text()) for record in traces.records())
    return [record["standby"]["pid"] for record in records if record["standby"]]


def children(pid: int) -> list[int]:
    """The processes that it has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill(pid: int) -> None:
    """Kill it, if it is still there, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not _runs(pid), f"process {pid} has ended")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def of_another_boot(path: Path) -> None:
    """Change the boot id in a record, as if it had been written before a reboot."""
    own = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    text = path.read_text()
    assert own in text
    path.write_text(text.replace(own, own[::-1]))


def _put_back(entry: Path) -> None:
    """The scratch files that libvirt has removed when it noticed, which a power cut would have left."""
    journal = json.loads(entry.read_text())
    if journal["scratch_vm"] is None and journal["source"]["kind"] == "pull":
        scratch = Path(journal["directory"])
        scratch.mkdir(exist_ok=True)
        (scratch / "vda.qcow2").write_bytes(b"QFI\xfb")
