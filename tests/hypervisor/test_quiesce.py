"""--quiesce, with the real guest agent: the guest's file systems are frozen at the snapshot's moment, and thawed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ..rig import dying, servers, traces, vm
from ..rig.command import refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def shared_vm_with_agent(libvirt: None) -> Iterator[vm.VM]:
    """A VM with the guest agent, which appends to a file of an ext4 file system on vda."""
    disks = [vm.Disk("vda", "raw", ext4=True)]
    with vm.running(f"{vm.PREFIX}-agent", disks, agent=True, command_line="snapmount.ext4=vda") as guest:
        guest.agent_answers()
        wait_for(lambda: "lines=" in guest.output(), "the guest writes")
        yield guest


@pytest.fixture
def with_agent(shared_vm_with_agent: vm.VM, clean: None) -> Iterator[vm.VM]:
    """That VM, whose guest is thawed after each test, and has its agent."""
    yield shared_vm_with_agent
    try:
        writes_on(shared_vm_with_agent)
    finally:
        shared_vm_with_agent.virsh("domfsthaw", shared_vm_with_agent.name, check=False)  # else the next one fails too
    shared_vm_with_agent.agent_answers()


def journal_must_be_replayed(image: Path) -> bool:
    """Whether the ext4 file system is as if the power had been cut: not cleanly unmounted, not frozen."""
    shown = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in shown


def writes_on(guest: vm.VM) -> None:
    lines = guest.output().count("lines=")
    wait_for(lambda: guest.output().count("lines=") > lines, "the guest writes on: it has been thawed")


@pytest.mark.sample
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
    """QEMU has one NBD server, and that is another's: libvirt finds it out only when the backup job is started."""
    (private,) = Path("/var/lib/libvirt/qemu").glob(f"domain-{with_agent.virsh('domid', with_agent.name).strip()}-*")
    address = {"type": "unix", "data": {"path": str(private / "others.sock")}}
    ask_qemu(with_agent, "nbd-server-start", addr=address)
    try:
        message = refused("--quiesce", with_agent.name, mountpoint, code=4)
    finally:
        ask_qemu(with_agent, "nbd-server-stop")
    assert "the backup job cannot be started" in message
    writes_on(with_agent)


def ask_qemu(guest: vm.VM, command: str, **arguments: Any) -> None:
    """Past libvirt."""
    guest.virsh("qemu-monitor-command", guest.name, json.dumps({"execute": command, "arguments": arguments}))


@pytest.mark.sample
def test_what_another_program_has_frozen_is_not_thawed(with_agent: vm.VM, mountpoint: Path) -> None:
    with_agent.virsh("domfsfreeze", with_agent.name)
    message = refused("--quiesce", with_agent.name, mountpoint, code=4)
    assert "cannot be frozen: they are frozen already, by another program" in message
    assert "qemu-guest-agent" not in message, "it is there"
    status = with_agent.virsh("qemu-agent-command", with_agent.name, '{"execute":"guest-fsfreeze-status"}')
    assert '"frozen"' in status
    with_agent.virsh("domfsthaw", with_agent.name)


def test_a_guest_without_an_agent_is_told_what_it_lacks(writer: vm.VM, mountpoint: Path) -> None:
    message = refused("--quiesce", writer.name, mountpoint, code=7)
    assert "install and start qemu-guest-agent" in message


def test_a_guest_that_is_paused_is_told_so_and_not_to_install_an_agent(with_agent: vm.VM, mountpoint: Path) -> None:
    with with_agent.suspended():
        message = refused("--quiesce", with_agent.name, mountpoint, code=4)
    assert "cannot be frozen: it is paused, by somebody\n" in message
    assert f"  try: virsh resume {with_agent.name}   (or do without --quiesce)" in message
    assert "agent" not in message.replace(with_agent.name, "")


@pytest.mark.parametrize("also", [dying.COMMAND, dying.STANDBY])
def test_a_guest_is_thawed_when_the_server_is_killed_while_it_is_frozen(
    with_agent: vm.VM, mountpoint: Path, also: str
) -> None:
    call = "snapmount.hypervisor.domain:Domain.begin_backup"
    code, _ = dying.run(call, also, "--quiesce", with_agent.name, mountpoint)
    assert code == (1 if also == dying.STANDBY else -signal.SIGKILL)
    writes_on(with_agent)
    wait_for(lambda: traces.found() == [], "all is undone")
    assert not with_agent.has_job()


def left_frozen(guest: vm.VM, mountpoint: Path) -> dict[str, Any]:
    """A snapshot whose record says that the guest may be frozen, as if its server had been killed after its moment, and
    its standby too.
    """
    taken: dict[str, Any] = snapmount_json(guest.name, mountpoint)
    servers.kill(taken, and_standby=True)
    change_record(taken, frozen=True)
    return taken


def change_record(taken: dict[str, Any], **changes: Any) -> None:
    record = Path(taken["server"]["log"]).with_name("record.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


@pytest.mark.sample
def test_a_guest_that_a_dead_server_may_have_left_frozen_is_thawed_by_delete(
    with_agent: vm.VM, mountpoint: Path
) -> None:
    left_frozen(with_agent, mountpoint)
    with_agent.virsh("domfsfreeze", with_agent.name)
    snapmount("delete", with_agent.name)
    writes_on(with_agent)


def agent_dies_while_frozen(guest: vm.VM) -> None:
    """Nobody can thaw the guest then.  Before a snapshot: while a job runs libvirt waits 30 s until it knows that."""
    script = "until [ -e /tmp/qga.state.isfrozen ]; do sleep 0.1; done; sleep 1; kill -9 $(pidof qemu-ga)"
    guest.virsh("qemu-agent-command", guest.name, json.dumps(shell(script)))
    guest.virsh("domfsfreeze", guest.name)
    wait_for(lambda: "state='disconnected'" in guest.virsh("dumpxml", guest.name), "the agent has gone")


def shell(script: str) -> dict[str, Any]:
    return {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", script]}}


def test_a_guest_that_cannot_be_thawed_is_told_and_not_forgotten_until_its_agent_is_back(
    with_agent: vm.VM, mountpoint: Path
) -> None:
    agent_dies_while_frozen(with_agent)
    taken = left_frozen(with_agent, mountpoint)
    message = refused("delete", with_agent.name, code=8)
    assert "file systems cannot be thawed" in message
    assert f"try: virsh domfsthaw {with_agent.name} && snapmount delete {taken['id']}" in message
    assert f"to do it by hand: virsh -c qemu:///system domfsthaw {with_agent.name} && " in message
    assert not with_agent.has_job()
    assert snapmount_json("list")[0]["state"] == "leftover"
    boot_anew(with_agent)
    snapmount("delete", with_agent.name)


def boot_anew(guest: vm.VM) -> None:
    """Its file systems are not frozen then."""
    guest.virsh("reset", guest.name)
    guest.agent_answers()


def test_a_guest_whose_agent_has_gone_for_good_is_not_waited_for_for_ever(with_agent: vm.VM, mountpoint: Path) -> None:
    agent_dies_while_frozen(with_agent)
    taken = left_frozen(with_agent, mountpoint)
    change_record(taken, snapshot=taken_an_hour_ago(taken))
    snapmount("delete", with_agent.name)
    assert traces.found() == []
    boot_anew(with_agent)


def taken_an_hour_ago(taken: dict[str, Any]) -> Any:
    record = json.loads(Path(taken["server"]["log"]).with_name("record.json").read_text())
    return record["snapshot"] | {"created": f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%S.%fZ}"}
