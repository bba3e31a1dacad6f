"""A scratch VM whose snapshot, server or maker ends, and one that is kept: nothing of it is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from snapmount.boot import tending
from snapmount.boot.scratchvm import ScratchVm
from snapmount.host.processes import Process
from snapmount.lifecycle import byhand
from snapmount.records.store import Lease, Store
from snapmount.sources import kinds

from ..rig import servers, traces, vm
from ..rig.command import SNAPMOUNT, refused, snapmount, snapmount_json
from ..rig.copies import UP, boot, domains, gone, running
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SEED = 7


# -- what breaks -------------------------------------------------------------------------------------------------------


def test_a_copy_gets_io_errors_when_the_original_ends_and_is_removed_cleanly(clean: None) -> None:
    disks = [vm.Disk("vda", size=1024 * vm.MIB)]  # so large that not all of it is in the overlay soon
    with vm.running(f"{vm.PREFIX}-own", disks, command_line=f"snapmount.seed={SEED} snapmount.pause=1000") as original:
        scratch, told = boot("--wait-for", UP, original.name)
        original.virsh("destroy", original.name)
        wait_for(lambda: snapmount_json("list")[0]["state"] == "lost", "the loss is told")
        wait_for(lambda: "error: write " in scratch.output(), "its guest gets errors", vm.BOOT_S)
        assert scratch.state() == "running"
        scratch.virsh("destroy", scratch.name)
        wait_for(lambda: not traces.found(), "the snapshot has ended too")
        assert gone(told)


def test_after_sigkill_of_the_server_delete_removes_all(writer: vm.VM) -> None:
    scratch, told = boot(writer.name)
    [listed] = snapmount_json("list")
    servers.kill(listed)
    assert scratch.name in refused("delete", writer.name, code=4)
    snapmount("delete", "--force", writer.name)
    assert gone(told)
    assert traces.found() == []


def test_after_sigkill_of_server_and_copy_delete_needs_no_force(writer: vm.VM) -> None:
    scratch, told = boot(writer.name)
    [listed] = snapmount_json("list")
    os.kill(listed["server"]["pid"], signal.SIGKILL)
    os.kill(scratch.qemu_pid(), signal.SIGKILL)
    wait_for(lambda: scratch.name not in domains(), "libvirt has noticed")
    snapmount("delete", writer.name)
    assert gone(told)
    assert traces.found() == []


@contextlib.contextmanager
def boot_that_is_killed(taken: dict[str, Any]) -> Iterator[Path]:
    """A boot whose record is written, below that directory, and which is killed at the end of the block."""
    vms = traces.RUNTIME / taken["id"] / "scratch-vm"
    with subprocess.Popen([SNAPMOUNT, "boot", taken["vm"]["name"]], stdout=subprocess.DEVNULL) as booting:
        wait_for(lambda: list(vms.glob("*.json")), "the record is written")
        yield vms
        booting.kill()


def test_what_a_killed_boot_has_made_is_removed_by_the_server(writer: vm.VM, mountpoint: Path) -> None:
    with boot_that_is_killed(snapmount_json(writer.name, mountpoint)) as vms:
        pass
    wait_for(lambda: running() or not list(vms.glob("*.json")), "it is undone, or runs: this host was faster")
    runs_already = running()
    snapmount("delete", *(["--force"] if runs_already else []), writer.name)
    assert traces.found() == []


def test_what_a_killed_boot_has_made_is_removed_by_delete(writer: vm.VM, mountpoint: Path) -> None:
    """The server has died too."""
    taken = snapmount_json(writer.name, mountpoint)
    with boot_that_is_killed(taken) as vms:
        os.kill(taken["server"]["pid"], signal.SIGKILL)
    [record] = vms.glob("*.json")
    runs_already = json.loads(record.read_text())["is_started"]
    snapmount("delete", *(["--force"] if runs_already else []), writer.name)
    assert traces.found() == []


def test_sigterm_to_the_server_ends_its_scratch_vms(writer: vm.VM) -> None:
    _, told = boot(writer.name)
    [listed] = snapmount_json("list")
    os.kill(listed["server"]["pid"], signal.SIGTERM)
    wait_for(lambda: not traces.found(), "the snapshot has ended")
    assert gone(told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_waiting_leaves_nothing(writer: vm.VM, number: signal.Signals) -> None:
    """Ctrl-C, or timeout(1) in a script."""
    command = [SNAPMOUNT, "boot", "--wait-for", "never said", writer.name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as booting:
        wait_for(running, "the copy runs", vm.BOOT_S)
        booting.send_signal(number)
        _, complaint = booting.communicate(timeout=vm.BOOT_S)
    assert (booting.returncode, complaint) == (130, "snapmount: interrupted\n")
    assert traces.found() == []


# -- kept --------------------------------------------------------------------------------------------------------------


def test_a_kept_copy_stays_until_it_is_deleted_by_force(writer: vm.VM) -> None:
    scratch, told = boot("--keep", "--wait-for", UP, writer.name)
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: snapmount_json("list")[0]["scratch_vms"][0]["state"] == "shut off", "it is shut off")
    assert Path(told["overlay_directory"]).exists()
    scratch.start()
    assert snapmount_json("list")[0]["scratch_vms"][0]["state"] == "running"
    assert scratch.name in refused("delete", writer.name, code=4)
    snapmount("delete", "--force", writer.name)
    assert gone(told)
    assert traces.found() == []


def test_a_kept_copy_ends_when_it_is_undefined(writer: vm.VM) -> None:
    scratch, told = boot("--keep", writer.name)
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: snapmount_json("list")[0]["scratch_vms"][0]["state"] == "shut off", "it is shut off")
    scratch.virsh("undefine", scratch.name)
    wait_for(lambda: not traces.found(), "it is gone, and the snapshot that was taken for it")
    assert gone(told)


async def test_a_vm_that_is_not_ours_is_never_ended(writer: vm.VM, mountpoint: Path) -> None:
    """A record that names another VM's uuid is not believed: only libvirt tells whose a VM is."""
    snapshot = snapmount_json(writer.name, mountpoint)["id"]
    store = Store.of_user(kinds.check)
    record = store.load(snapshot)
    assert record
    for named in (writer.uuid(), str(UUID(int=7))):
        mistaken = ScratchVm(
            name=writer.name,
            uuid=named,
            accelerator="qemu",
            overlays=str(mountpoint.with_name(f"snapmount-{snapshot}-vm-{named[:8]}")),
            is_kept=True,
            process=Process(1 << 22, 1, "another boot"),
            is_started=True,
        )
        await tending.end(record, store.path(snapshot), mistaken)
    assert writer.state() == "running"
    writer.keeps_writing()
    snapmount("delete", writer.name)


def test_a_kept_copy_is_to_be_undefined_by_hand_only_where_it_is_defined(writer: vm.VM) -> None:
    scratch, told = boot("--keep", writer.name)
    store = Store.of_user(kinds.check)
    lease = Lease(store, store.find(writer.name), lock=-1)

    def by_hand() -> list[str]:
        return trio.run(partial(byhand.commands, lease, is_released=True)).split(" && ")

    virsh, own = "virsh -c qemu:///system", told["uuid"]
    undefine = f"{virsh} undefine --nvram --managed-save --snapshots-metadata --checkpoints-metadata {own}"
    unless_gone = f" || LC_ALL=C {virsh} domid {own} 2>&1 | grep -q 'failed to get domain'; }}"
    assert by_hand()[:2] == [f"{{ {virsh} destroy {own}{unless_gone}", f"{{ {undefine}{unless_gone}"]
    scratch.virsh("undefine", scratch.name)
    assert by_hand()[0] == f"{{ {virsh} destroy {own}{unless_gone}"
    assert not any("undefine" in line for line in by_hand())
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: not traces.found(), "nothing is left")
