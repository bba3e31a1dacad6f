"""contrib/quickstart: the main job on real input, with nothing prepared by hand, shown step by step."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from . import guest, libvirtd, prefix, vm
from .command import SNAPMOUNT, read_direct

NAME = "snapmount-quickstart"
SEED = 2011
DISKS = (vm.Disk("vda", "raw"), vm.Disk("vdb", "qcow2"))
WRITES = 2000  # that the guest makes between two looks at the view


def main() -> int:
    """Run it; the exit code tells whether the view stood still while the origin changed."""
    os.environ["PATH"] = f"{Path(SNAPMOUNT).parent}:{os.environ['PATH']}"
    with libvirtd.running() as started:
        say("a libvirt daemon runs" if not started else f"started {' and '.join(started)}, to be stopped at the end")
        say("building a tiny guest: a distribution kernel and busybox (downloaded once)")
        guest.build()
        accelerator = "KVM" if guest.domain_type() == "kvm" else "TCG, since KVM does not work on this host"
        remove_left_over()
        say(f"defining and starting the VM {NAME}, two disks, with {accelerator}")
        with vm.running(NAME, DISKS, command_line=f"snapmount.seed={SEED}") as running:
            running.keeps_writing(WRITES)
            say(f"the guest is up and has made {running.written()} writes, at random places of both disks")
            with tempfile.TemporaryDirectory(prefix=f"{NAME}-", dir="/var/tmp") as directory:
                holds = snapshot(running, Path(directory))
    say("the host is as it was")
    return 0 if holds else 1


def snapshot(running: vm.VM, mountpoint: Path) -> bool:
    """Take a snapshot, prove what is claimed of it, delete it."""
    run("snapmount", NAME, str(mountpoint))
    try:
        run("ls", "-l", str(mountpoint))
        first = look(running, mountpoint)
        say(f"waiting until the guest has made {WRITES} more writes")
        running.keeps_writing(WRITES)
        run("snapmount", "list")
        second = look(running, mountpoint)
        still = all(first[disk.name][0] == second[disk.name][0] for disk in DISKS)
        changed = all(first[disk.name][1] != second[disk.name][1] for disk in DISKS)
        say("the view has stood still" if still else "THE VIEW HAS CHANGED")
        say("the origin has changed" if changed else "THE ORIGIN HAS NOT CHANGED")
        writes = prefix.prove(SEED, [view(mountpoint, disk) for disk in DISKS])
        say(f"the view holds exactly the guest's writes 1 to {writes}, across both disks")
        return still and changed
    finally:
        run("snapmount", "umount", str(mountpoint))
        run("snapmount", "list")


def look(running: vm.VM, mountpoint: Path) -> dict[str, tuple[str, str]]:
    """Print and return the hashes of the view and of the origin, by disk."""
    hashes = {}
    for disk in DISKS:
        origin = running.directory / (f"{disk.name}.img" if disk.kind == "raw" else f"{disk.name}.qcow2")
        hashes[disk.name] = (sha256(view(mountpoint, disk)), sha256(origin.read_bytes()))
        print(f"  {disk.name}: view {hashes[disk.name][0][:16]}  origin {hashes[disk.name][1][:16]}  (sha256)")
    return hashes


def view(mountpoint: Path, disk: vm.Disk) -> bytes:
    """The disk as the mount shows it, read anew and not from the page cache."""
    return read_direct(mountpoint / f"{disk.name}.raw")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def remove_left_over() -> None:
    """Remove what a killed run of this program has left."""
    subprocess.run(["snapmount", "delete", NAME], capture_output=True)
    vm.VM(NAME, Path()).remove()


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*command: str) -> None:
    """Show a command and run it."""
    print(f"$ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
