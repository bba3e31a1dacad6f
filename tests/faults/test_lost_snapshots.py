"""The VM or its backup job ends while the snapshot lives: its point in time is lost, and nobody gets other bytes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ..rig import traces, vm
from ..rig.command import assert_reads_fail, read_direct, refused, snapmount, snapmount_json, state_of
from ..rig.libvirtd import wait_for
from ..rig.listing import assert_lists_what_cannot_be_read

pytestmark = pytest.mark.vm
UP = "guest is up"
SOON_S = 20  # of which libvirt takes a second
AGENT_ENDS = "End of file from agent socket|Guest agent disappeared while executing command|domain is not running"


@pytest.mark.sample
@pytest.mark.parametrize(
    ("end_it", "reason"),
    [
        (lambda guest: guest.virsh("destroy", guest.name), "{name} was destroyed"),
        (lambda guest: os.kill(guest.qemu_pid(), signal.SIGKILL), "{name} has crashed"),
        (lambda guest: guest.abort_job(), "the backup job was ended by somebody else"),
    ],
    ids=["destroyed", "QEMU killed", "job aborted"],
)
def test_a_lost_snapshot_says_why_and_gives_no_bytes(
    own_vm: vm.VM, mountpoint: Path, end_it: Callable[[vm.VM], None], reason: str
) -> None:
    snapmount(own_vm.name, mountpoint)
    for file in ("vda.raw", "vda.qcow2"):
        (mountpoint / file).read_bytes()  # the kernel's page cache holds all of it now
    end_it(own_vm)
    wait_for(lambda: state_of(own_vm.name) == ("lost", reason.format(name=own_vm.name)), "list says why")
    assert reason.format(name=own_vm.name) in snapmount("list").stdout
    for file in ("vda.raw", "vda.qcow2"):
        assert_reads_fail(mountpoint / file)
    assert_lists_what_cannot_be_read(mountpoint, "vdb", own_vm.disks[1].size)
    assert (mountpoint / "domain.xml").read_text().startswith("<domain"), "what is known still can be read"
    snapmount("delete", own_vm.name)
    assert traces.found() == []


def stop_export(guest: vm.VM) -> None:
    """As nobody should: libvirt does not know of it, and its job goes on."""
    guest.virsh("qemu-monitor-command", guest.name, '{"execute": "nbd-server-stop"}')


def test_a_job_that_outlives_its_export_is_ended(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    stop_export(writer)
    wait_for(lambda: not writer.has_job(), "the job has ended")
    assert state_of(writer.name) == ("lost", "QEMU has closed the connection")
    assert_reads_fail(mountpoint / "vda.raw")
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_job_that_outlives_its_export_is_ended_by_the_standby_where_the_server_was_killed(
    writer: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    record = Path(taken["server"]["log"]).with_name("record.json")
    stop_export(writer)
    wait_for(lambda: json.loads(record.read_text())["state"] == "lost", "the server has noted it")
    os.kill(taken["server"]["pid"], signal.SIGKILL)  # before it ends the job
    wait_for(lambda: not writer.has_job(), "the job has ended")
    assert state_of(writer.name) == ("dead", "QEMU has closed the connection")
    snapmount("delete", writer.name)
    assert traces.found() == []


def in_guest(guest: vm.VM, script: str) -> None:
    """Let a shell run it in the guest, and wait for nothing; the script may end the agent before that has answered."""
    asked = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", script]}}
    try:
        guest.virsh("qemu-agent-command", guest.name, json.dumps(asked))
    except RuntimeError as error:
        if not re.search(AGENT_ENDS, str(error)):
            raise


def test_a_guest_that_shuts_itself_down_ends_its_snapshot_and_its_vm_at_once(clean: None, mountpoint: Path) -> None:
    """libvirt alone takes 30 s, since the agent ends first, as a service manager has it."""
    with vm.running(f"{vm.PREFIX}-down", [vm.Disk("vda"), vm.Disk("vdb", "qcow2")], agent=True) as guest:
        guest.agent_answers()
        snapmount(guest.name, mountpoint)
        in_guest(guest, "kill $(pidof qemu-ga); sleep 1; poweroff -f")
        wait_for(lambda: state_of(guest.name) == ("lost", f"{guest.name} was shut down"), "list says why", SOON_S)
        wait_for(lambda: guest.state() == "shut off", "libvirt has noticed", SOON_S)
        assert "shutdown" in guest.virsh("domstate", "--reason", guest.name), "and has not been told to destroy it"
        assert_reads_fail(mountpoint / "vda.raw")
        snapmount("delete", guest.name)


def test_a_snapshot_outlives_each_reboot_of_its_guest(clean: None, mountpoint: Path) -> None:
    """Of a shutdown libvirt makes a reboot here.  A reset comes last: libvirt does not notice the new agent in time."""
    with vm.running(f"{vm.PREFIX}-again", [vm.Disk("vda")], agent=True, start=False) as guest:
        xml = guest.directory / "domain.xml"
        xml.write_text(xml.read_text().replace("<devices>", "<on_poweroff>restart</on_poweroff><devices>"))
        guest.virsh("undefine", guest.name)
        guest.virsh("define", str(xml))
        guest.start()
        guest.agent_answers()
        snapmount(guest.name, mountpoint)
        before = read_direct(mountpoint / "vda.raw")
        reboots: list[Callable[[], object]] = [
            lambda: in_guest(guest, "poweroff -f"),
            lambda: guest.virsh("reset", guest.name),
        ]
        for number, reboot in enumerate(reboots, 1):
            reboot()
            wait_for(lambda goal=number: guest.output().count(UP) > goal, "it has booted anew", vm.BOOT_S)  # type: ignore[misc]
            assert state_of(guest.name) == ("active", None)
            assert read_direct(mountpoint / "vda.raw") == before
        guest.virsh("destroy", guest.name)
        snapmount("delete", guest.name)


def test_a_vm_started_anew_is_not_taken_for_the_one_of_the_snapshot(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount(own_vm.name, mountpoint)
    own_vm.virsh("destroy", own_vm.name)
    own_vm.start()
    wait_for(lambda: state_of(own_vm.name)[0] == "lost", "the loss is seen")
    assert_reads_fail(mountpoint / "vda.raw")
    snapmount("delete", own_vm.name)
    snapmount(own_vm.name, mountpoint)
    snapmount("delete", own_vm.name)


def test_the_job_of_another_program_is_left_alone(own_vm: vm.VM, mountpoint: Path) -> None:
    """Ours is aborted and another one started before ours is deleted: that one is not ours to end."""
    snapmount(own_vm.name, mountpoint)
    own_vm.abort_job()
    own_vm.begin_foreign_backup()
    snapmount("delete", own_vm.name)
    assert own_vm.has_job()
    message = refused(own_vm.name, mountpoint, code=4)
    assert "has a backup job already, of another program" in message
    assert "virsh domjobinfo" in message
