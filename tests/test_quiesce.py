"""--quiesce, with the real guest agent: the guest's file systems are frozen at the snapshot's moment, and thawed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rig import vm
from .rig.command import refused, snapmount, snapmount_json
from .rig.libvirtd import wait_for

pytestmark = pytest.mark.vm


@pytest.fixture
def with_agent(clean: None) -> Iterator[vm.VM]:
    """A VM with the guest agent, which appends to a file of an ext4 file system on vda."""
    disks = [vm.Disk("vda", "raw", ext4=True)]
    with vm.running(f"{vm.PREFIX}-agent", disks, agent=True, command_line="snapmount.ext4=vda") as guest:
        guest.agent_answers()
        wait_for(lambda: "lines=" in guest.output(), "the guest writes")
        yield guest


def journal_must_be_replayed(image: Path) -> bool:
    """Whether the ext4 file system is as if the power had been cut: not cleanly unmounted, not frozen."""
    shown = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in shown


def writes_on(guest: vm.VM) -> None:
    lines = guest.output().count("lines=")
    wait_for(lambda: guest.output().count("lines=") > lines, "the guest writes on: it has been thawed")


def test_a_quiesced_file_system_needs_no_journal_replay_and_the_guest_goes_on(
    with_agent: vm.VM, mountpoint: Path
) -> None:
    snapmount(with_agent.name, mountpoint)
    assert journal_must_be_replayed(mountpoint / "vda.raw"), "without --quiesce it does"
    snapmount("delete", with_agent.name)

    taken = snapmount_json("--quiesce", with_agent.name, mountpoint)
    assert taken["quiesced"] is True
    assert not journal_must_be_replayed(mountpoint / "vda.raw")
    subprocess.run(["e2fsck", "-fn", mountpoint / "vda.raw"], check=True, capture_output=True)
    writes_on(with_agent)
    snapmount("delete", with_agent.name)


def test_the_guest_is_thawed_when_the_job_cannot_be_started(with_agent: vm.VM, mountpoint: Path) -> None:
    """The disk is busy with another block job, which libvirt finds out only when the backup job is started."""
    copy = with_agent.directory / "copy.img"
    with_agent.virsh("blockcopy", with_agent.name, "vda", "--dest", str(copy), "--transient-job", "--format", "raw")
    message = refused("--quiesce", with_agent.name, mountpoint, code=4)
    assert "the backup job cannot be started" in message
    writes_on(with_agent)


def test_a_guest_that_a_dead_server_may_have_left_frozen_is_thawed_by_delete(
    with_agent: vm.VM, mountpoint: Path
) -> None:
    """As if the server had been killed between freeze and thaw: the record says so before it is done."""
    import json
    import os
    import signal

    taken = snapmount_json(with_agent.name, mountpoint)
    os.kill(taken["server"]["pid"], signal.SIGKILL)
    record = Path(taken["server"]["log"]).with_name("record.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"frozen": True}))
    with_agent.virsh("domfsfreeze", with_agent.name)
    wait_for(lambda: snapmount_json("list")[0]["state"] == "dead", "the server is dead")
    snapmount("delete", with_agent.name)
    writes_on(with_agent)
