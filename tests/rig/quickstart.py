"""contrib/quickstart: the main job on real input, with nothing prepared by hand, shown step by step."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from . import guest, libvirtd, prefix, signals, vm
from .command import SNAPMOUNT, read_direct

NAME = "snapmount-quickstart"
SEED = 2011
DISKS = (vm.Disk("vda", "raw"), vm.Disk("vdb", "qcow2"))
WRITES = 2000  # that the guest makes between two looks at the view
LOG = Path(__file__).parents[2] / ".cache" / "quickstart.log"
QEMU_LOG = Path(f"/var/log/libvirt/qemu/{NAME}.log")
CORE_REMEDY = "root has a core limit (ulimit -Hc) and no CAP_SYS_RESOURCE; try: max_core = 0 in /etc/libvirt/qemu.conf"
NEXT = f"""\
next, with a VM of yours that runs (virsh list):
  sudo {SNAPMOUNT} doctor          what this host lacks, and the commands that mend it
  sudo {SNAPMOUNT} VM /mnt         its disks, as they are now, in /mnt
  sudo {SNAPMOUNT} umount /mnt     and nothing is left behind
  man {Path(__file__).parents[2]}/contrib/snapmount.1"""


def main() -> int:
    """Run it; the exit code tells whether the view stood still while the origin changed.

    What goes wrong is told in a few lines, with the place of all that is known of it.
    """
    try:
        holds = prove()
    except (RuntimeError, OSError, AssertionError, subprocess.SubprocessError) as error:
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_text(f"{traceback.format_exc()}\n{getattr(error, 'stderr', None) or ''}")
        print(f"quickstart: {message_of(error)}", file=sys.stderr)
        print(f"quickstart: more is in {LOG}, and in {QEMU_LOG} once QEMU has run", file=sys.stderr)
        return 1
    if holds:
        print(NEXT)
    return 0 if holds else 1


def message_of(error: Exception) -> str:
    """What has gone wrong, and what to do where that is known."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{shlex.join(map(str, error.cmd))} has failed, with exit code {error.returncode}"
    said = str(error) or type(error).__name__
    return f"{said}\n  {CORE_REMEDY}" if "cannot limit core file size" in said else said


def prove() -> bool:
    """The proof, from libvirt's daemon to the last command; whether it holds."""
    os.environ["PATH"] = f"{Path(SNAPMOUNT).parent}:{os.environ['PATH']}"
    with signals.clearing_up(), libvirtd.running() as started:
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
                try:
                    holds = snapshot(running, Path(directory))
                except SystemExit:
                    delete()  # what the command that was killed with us has taken
                    raise
    say("the host is as it was")
    return holds


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
    delete()
    vm.VM(NAME, Path()).remove()


def delete() -> None:
    subprocess.run(["snapmount", "delete", NAME], capture_output=True)


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*command: str) -> None:
    """Show a command and run it."""
    print(f"$ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
