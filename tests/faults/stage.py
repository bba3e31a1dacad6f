"""What stands ready for every round: the guest that writes, a helper VM, a small file system, a mountpoint.

What a fault has not spared is made anew; what only some stories need is made for the first of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from ..rig import filesystems, prefix, traces, vm
from ..rig.command import snapmount
from ..rig.libvirtd import wait_for

KINDS = {"vda": ("raw", 48 * vm.MIB, "xfs"), "vdb": ("qcow2", 32 * vm.MIB, "btrfs")}  # their worst case is 81 MiB
GUEST, HELPER = f"{vm.PREFIX}-soak", f"{vm.HELPER}-soak"
CLUSTERS = sum(size for _, size, _ in KINDS.values()) // 65536
GUEST_SEED = 11
SMALL_MIB = 160
IMAGES_MIB = 400  # of the file systems of its disks
EXAMPLE = Path(__file__).parents[2] / "contrib" / "hooks" / "example"
GONE_S = 30


def remove_left_over() -> None:
    """Remove what a killed run has left; libvirt runs."""
    snapmount("delete", "--force", GUEST, check=False)
    for name in (GUEST, HELPER):
        left = vm.VM(name, Path())
        consoles = re.findall(r"<source path='(.*/console\.log)'", left.virsh("dumpxml", name, check=False))
        left.remove()
        for console in consoles:
            shutil.rmtree(Path(console).parent, ignore_errors=True)
    for directory in (*vm.IMAGES.glob(f"{GUEST}-*"), *Path("/var/tmp").glob(f"{GUEST}-*")):
        filesystems.remove_left_over(directory)
    snapmount("recover", check=False)


class Stage:
    """It is cleared away with the stack."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        # before the guest, which then sees it
        self.small = stack.enter_context(filesystems.mounted(SMALL_MIB, name=GUEST))
        places = ("xfs", "btrfs")
        self.images = {kind: stack.enter_context(filesystems.mounted(IMAGES_MIB, kind, GUEST)) for kind in places}
        self.disks = [
            vm.Disk(name, kind, size, place=self.images[place]) for name, (kind, size, place) in KINDS.items()
        ]
        self.hook = Path(shutil.copy(EXAMPLE, self.small.parent / "hook"))
        self.mountpoint = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{GUEST}-", dir="/var/tmp")))
        self.mountpoint.chmod(0o755)
        self._of_helper = stack.enter_context(contextlib.ExitStack())
        self._helper: vm.VM | None = None
        self._of_guest = stack.enter_context(contextlib.ExitStack())
        self.make_guest()

    def make_guest(self) -> None:
        self._of_guest.close()
        running = vm.running(GUEST, self.disks, command_line=f"snapmount.seed={GUEST_SEED} snapmount.pause=200")
        self.guest = self._of_guest.enter_context(running)
        self.guest.keeps_writing(100)
        self.replay = prefix.Replay(GUEST_SEED, [disk.size for disk in self.disks])

    def all_is_written(self) -> None:
        """Wait until the guest has written to each cluster: what is overwritten then takes scratch space."""
        wait_for(lambda: self.guest.written() > 8 * CLUSTERS, "the guest has written to all clusters")

    def helper(self) -> vm.VM:
        """A VM that runs, and tells of the disks that are plugged into it; between rounds it stands still."""
        if self._helper is None:
            running = vm.running(HELPER, [vm.Disk("vda", size=vm.MIB)], command_line="snapmount.watch")
            self._helper = self._of_helper.enter_context(running)
        elif self._helper.state() == "shut off":
            self._helper.start()
        elif self._helper.state() == "paused":
            self._helper.virsh("resume", self._helper.name)
        return self._helper

    def check(self, *, guest_lives: bool) -> None:
        """Raise AssertionError or TimeoutError if a round has left what it must not, or harmed the guest."""
        wait_for(lambda: not traces.found(), "no trace is left", GONE_S)
        assert os.listdir(self.small) == ["lost+found"]
        left = [path for place in self.images.values() for path in place.iterdir() if "snapmount-" in path.name]
        assert not left, f"a clone is left: {left}"
        if guest_lives:
            self.guest.keeps_writing()
            assert self.guest.write_errors() == 0, "a write of the guest has failed"
            assert not self.guest.has_job(), "a backup job is left"
        scratch_vms = [name for name in self.guest.virsh("list", "--all", "--name").split() if "-scratch-" in name]
        assert not scratch_vms, f"a scratch VM is left: {scratch_vms}"
        if self._helper and self._helper.state() != "shut off":
            wait_for(lambda: self._helper and self._helper.targets() == ["vda"], "the helper has its own disk alone")

    def rest(self) -> None:
        """Between rounds the helper takes no processor from the guest."""
        if self._helper and self._helper.state() == "running":
            self._helper.virsh("suspend", self._helper.name)

    def drop_helper(self) -> None:
        """The next one is a new one."""
        self._helper = None
        self._of_helper.close()
