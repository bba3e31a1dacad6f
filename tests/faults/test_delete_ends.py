"""`delete` always ends, and says what it could not undo, and how to do that by hand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..rig import libiscsi, libvirtd, traces, vm
from ..rig.command import refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for
from ..rig.signals import stopped

pytestmark = pytest.mark.vm
BEARABLE_S = 75  # a minute, and what a busy host takes


def test_with_a_hung_qemu_and_a_reader_that_hangs_with_it(own_vm: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json("--read-timeout", "1000", own_vm.name, mountpoint)
    qemu = own_vm.qemu_pid()
    with (
        stopped(qemu),
        subprocess.Popen(
            ["cat", mountpoint / "vda.raw"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as reader,
    ):
        wait_for(lambda: Path(f"/proc/{reader.pid}/stat").read_text().split()[2] == "D", "the reader hangs")
        began = time.monotonic()
        message = refused("delete", own_vm.name, code=8)
        assert time.monotonic() - began < BEARABLE_S
        assert reader.wait(timeout=60) != 0
        assert os.listdir(mountpoint) == [], "the view is gone"
        assert f"its QEMU, process {qemu}, is stopped" in message
        assert f"try: kill -CONT {qemu} && snapmount delete {taken['id']}" in message
        by_hand = f"virsh -c qemu:///system domjobabort {own_vm.name} && rm -rf {taken['scratch']['directory']}"
        assert by_hand in message
        (listed,) = snapmount_json("list")
        assert (listed["state"], "has not ended" in listed["reason"]) == ("leftover", True)
    wait_for(lambda: traces.found() == [], "the standby has undone it, now that QEMU goes on")
    assert not own_vm.has_job()


@pytest.mark.skipif(not Path("/usr/sbin/tgtd").exists(), reason="this host lacks tgtd: run contrib/setup --test")
def test_by_hand_as_it_was_said(own_vm: vm.VM, helper: vm.VM) -> None:
    """The commands that are told undo all, where the program is not there to do it."""
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", portal, own_vm.name)
    snapshot = taken["id"]
    scratch_vms = [snapmount_json("boot", *keep, snapshot)["name"] for keep in ([], ["--keep"])]
    own_vm.virsh("managedsave", scratch_vms[1])
    snapmount("attach", snapshot, helper.name)
    os.kill(taken["server"]["standby_pid"], signal.SIGKILL)
    with libvirtd.stopped():
        message = refused("delete", "--force", snapshot, code=8)
    match = re.search(r"to do it by hand: (.*)", message)
    assert match
    subprocess.run(["sh", "-e", "-c", match[1]], check=True)
    assert snapmount_json("list") == []
    # libvirt and the guest end the job and give the disks up in their own time
    wait_for(lambda: not own_vm.has_job(), "the job has ended")
    wait_for(lambda: helper.targets() == ["vda"], "the disks are unplugged")
    wait_for(lambda: not [each for each in traces.found() if "directory" not in each], "nothing is left")
    assert not set(scratch_vms) & set(own_vm.virsh("list", "--all", "--name").split())
    for directory in (traces.RUNTIME, traces.SCRATCH):
        directory.rmdir()


def test_with_a_libvirtd_that_hangs(writer: vm.VM, mountpoint: Path) -> None:
    if not libvirtd.PID_FILES["libvirtd"].exists():
        pytest.skip("this host's libvirt daemon is not libvirtd, or has no pid file")
    taken = snapmount_json(writer.name, mountpoint)
    with stopped(int(libvirtd.PID_FILES["libvirtd"].read_text())):
        began = time.monotonic()
        message = refused("delete", writer.name, code=8)
        assert time.monotonic() - began < BEARABLE_S
        assert "libvirt did not answer within" in message
        assert f"snapmount delete {taken['id']}" in message
    wait_for(lambda: traces.found() == [], "the standby has undone it, now that libvirtd goes on")
    assert not writer.has_job()


def test_with_a_server_that_is_stopped(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    os.kill(taken["server"]["pid"], signal.SIGSTOP)
    began = time.monotonic()
    snapmount("delete", writer.name)
    assert time.monotonic() - began < BEARABLE_S
    assert traces.found() == []
