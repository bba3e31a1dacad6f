"""Scratch VMs on real parts: a copy of a running VM boots from its snapshot, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.boot.launch import BootRequest
from snapmount.boot.launch import run as start_copy
from snapmount.records.store import Store
from snapmount.sources import kinds

from ..rig import guest, libiscsi, libvirtd, prefix, rootdisk, traces, vm
from ..rig.command import SNAPMOUNT, refused, snapmount, snapmount_json
from ..rig.copies import UP, boot, domains, gone, running, sha256
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SEED = 7


@pytest.fixture
def rooted(clean: None) -> Iterator[vm.VM]:
    """A VM whose root is a disk with a journal, which it writes to all the time."""
    disks = [vm.Disk("vda", "qcow2", fill=rootdisk.fill)]
    with vm.running(f"{vm.PREFIX}-root", disks, command_line="snapmount.root=vda") as running:
        yield running


@pytest.fixture(scope="module")
def shared_agent_vm(libvirt: None) -> Iterator[vm.VM]:
    """A VM whose guest agent answers."""
    with vm.running(f"{vm.PREFIX}-agent", [vm.Disk("vda")], agent=True) as running:
        yield running


@pytest.fixture
def agent_vm(shared_agent_vm: vm.VM, clean: None) -> vm.VM:
    """The shared one, which runs on."""
    return shared_agent_vm


# -- the copy ----------------------------------------------------------------------------------------------------------


@pytest.mark.sample
def test_a_copy_boots_from_its_root_disk_while_the_original_runs_on(
    rooted: vm.VM, mountpoint: Path, tmp_path: Path
) -> None:
    wait_for(lambda: rooted.lines() > 20, "the guest has written")
    snapmount(rooted.name, mountpoint)
    before = sha256(mountpoint / "vda.raw")
    shutil.copy(mountpoint / "vda.raw", tmp_path / "vda.raw")
    held = rootdisk.lines(tmp_path / "vda.raw")
    assert held == list(range(1, len(held) + 1))

    scratch, told = boot("--wait-for", r"^lines=\d", mountpoint)

    assert f"root disk holds lines={len(held)}" in scratch.output(), "the disk is that of the snapshot's moment"
    assert ": recovery complete" in scratch.output(), "its journal was replayed"
    assert (told["state"], told["kept"], told["left_out"]) == ("running", False, [])
    assert told["accelerator"] == {"kvm": "kvm", "qemu": "tcg"}[guest.domain_type()]
    assert told["overlay_bytes"] > 0
    wait_for(lambda: scratch.lines() > len(held) + 20, "the copy writes to its disk")
    so_far = rooted.lines()
    wait_for(lambda: rooted.lines() > so_far, "the original goes on")
    assert sha256(mountpoint / "vda.raw") == before
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: gone(told) and snapmount_json("show", mountpoint)["scratch_vms"] == [], "its overlays are gone")
    snapmount("delete", rooted.name)
    assert traces.found() == []


def test_a_disk_with_a_boot_loader_of_its_own_boots(clean: None) -> None:
    for program in ("syslinux", "mformat"):
        if not shutil.which(program):
            pytest.skip(f"this host lacks {program}: run contrib/setup --test")
    disks = [
        vm.Disk("vda", size=64 * vm.MIB, fill=rootdisk.fill_with_loader),
        vm.Disk("vdb", "qcow2", fill=rootdisk.fill),
    ]
    with vm.running(f"{vm.PREFIX}-loader", disks, direct_kernel=False) as original:
        wait_for(lambda: original.lines() > 0, "the guest has written")
        scratch, _ = boot("--wait-for", r"^lines=\d", original.name)
        assert "<kernel>" not in scratch.virsh("dumpxml", scratch.name)
        assert "recovery complete" in scratch.output()
        scratch.virsh("destroy", scratch.name)
        wait_for(lambda: not traces.found(), "nothing is left")


def test_what_a_copy_writes_reaches_neither_the_view_nor_the_original(writer: vm.VM, mountpoint: Path) -> None:
    """The copy's guest stamps all sectors anew from write 1 on: one that reached the original would be out of order."""
    snapmount(writer.name, mountpoint)
    files = [mountpoint / "vda.raw", mountpoint / "vdb.raw"]
    before = sha256(*files)
    scratch, _ = boot("--wait-for", f"^{UP}$", writer.name)
    scratch.keeps_writing(1000)
    assert sha256(*files) == before
    snapmount("delete", "--force", writer.name)
    assert prefix.prove(SEED, writer.read_disks()) > 0


def test_a_snapshot_that_is_published_only_boots_too(writer: vm.VM) -> None:
    snapmount("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{libiscsi.free_port()}", writer.name)
    scratch, told = boot("--wait-for", UP, writer.name)
    assert told["came_after_s"] > 0
    scratch.keeps_writing()
    (ended,) = snapmount_json("delete", "--force", writer.name)
    assert (ended["deleted"], ended["scratch_vms"], ended["luns"]) == (True, [scratch.name], 2)
    assert traces.found() == []


def test_a_vm_s_name_wins_over_the_beginning_of_a_snapshot_s_id(writer: vm.VM, mountpoint: Path) -> None:
    first = snapmount_json(writer.name, mountpoint)["id"]
    with vm.running(first[:4], [vm.Disk("vda")], paused=True) as named:
        scratch, told = boot(named.name)
        assert told["snapshot"] != first
        assert scratch.name.startswith(f"{named.name}-scratch-")
        snapmount("delete", "--force", told["snapshot"])
    assert boot(first[:5])[1]["snapshot"] == first
    done = snapmount("delete", "--force", first[:4], "nothing", "--json", check=False)
    assert done.returncode == 3
    assert "there is no snapshot" in done.stderr
    assert [each["id"] for each in json.loads(done.stdout)] == [first]


def test_the_copy_is_as_the_options_say(writer: vm.VM, mountpoint: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    overlays = mountpoint.parent / f"{mountpoint.name}-overlays"
    overlays.mkdir(mode=0o755)
    try:
        snapmount(writer.name, mountpoint)
        options = ["--name", "snapmount-test-scratch-1", "--memory", "160M", "--vcpus", "2", "--overlay-dir"]
        scratch, told = boot(*options, overlays, mountpoint)
        assert told["name"] == "snapmount-test-scratch-1"
        assert Path(told["overlay_directory"]).parent == overlays
        xml = scratch.virsh("dumpxml", scratch.name)
        assert "<memory unit='KiB'>163840</memory>" in xml
        assert ">2</vcpu>" in xml
        assert "<interface" not in xml
        assert scratch.uuid() == told["uuid"] != writer.uuid()
        assert scratch.virsh("list", "--transient", "--name").split() == [scratch.name]
        snapmount("delete", "--force", mountpoint)
        assert list(overlays.iterdir()) == []
    finally:
        shutil.rmtree(overlays)


def test_no_link_reaches_an_isolated_copy(clean: None) -> None:
    interface = "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>"
    with vm.running(f"{vm.PREFIX}-net", [vm.Disk("vda")], extra_devices=interface) as original:
        scratch, told = boot("--network", "isolated", original.name)
        xml = scratch.virsh("dumpxml", scratch.name)
        assert "<link state='down'/>" in xml
        assert "52:54:00:00:00:01" not in xml
        assert told["left_out"] == []
        _, alone = boot(original.name)
        assert alone["left_out"] == [{"name": "interface", "why": "no network was asked for"}]
        said = refused("boot", "--network", "no-such-network", original.name, code=3)
        assert "there is no network 'no-such-network'" in said
        snapmount("delete", "--force", original.name)
        assert traces.found() == []


def test_a_snapshot_is_taken_where_there_is_none_and_ends_with_its_last_scratch_vm(writer: vm.VM) -> None:
    first, told = boot(writer.name)
    second, told_too = boot(told["snapshot"])
    assert told["snapshot"] == told_too["snapshot"]
    assert told["name"] != told_too["name"]
    [listed] = snapmount_json("list")
    assert {each["name"] for each in listed["scratch_vms"]} == {first.name, second.name}
    assert listed["mountpoint"] is None
    shown = snapmount("list").stdout
    assert f"\n            {first.name} " in shown
    assert first.name in snapmount("show", writer.name).stdout
    for scratch in (first, second):
        wait_for(lambda each=scratch: UP in each.output(), "it has booted")  # type: ignore[misc]
    first.virsh("destroy", first.name)
    wait_for(lambda: gone(told), "the first one's overlays are gone")
    assert [each["name"] for each in snapmount_json("show", writer.name)["scratch_vms"]] == [second.name]
    second.virsh("destroy", second.name)
    wait_for(lambda: not traces.found(), "the snapshot has ended")
    assert not writer.has_job()


def test_a_copy_that_its_guest_shuts_down_is_gone_too(agent_vm: vm.VM) -> None:
    scratch, _ = boot("--wait-for", "agent", agent_vm.name)
    scratch.virsh("shutdown", "--mode", "agent", scratch.name)
    wait_for(lambda: not traces.found(), "nothing is left", vm.BOOT_S)
    agent_vm.agent_answers()


def test_its_console_can_be_connected_to(writer: vm.VM) -> None:
    controller, terminal = pty.openpty()
    with subprocess.Popen([SNAPMOUNT, "boot", "--console", writer.name], stdin=terminal, stdout=terminal) as booting:
        os.close(terminal)
        shown = b""
        while b"seq=" not in shown:
            shown += os.read(controller, 4096)
        assert b"Connected to domain" in shown
        os.write(controller, b"\x1d")  # ^], virsh's escape character
        os.set_blocking(controller, False)
        assert booting.wait(vm.BOOT_S) == 0
    os.close(controller)
    [scratch] = running()
    writer.virsh("destroy", scratch)
    wait_for(lambda: not traces.found(), "nothing is left")


# -- waiting for the guest ---------------------------------------------------------------------------------------------


def test_a_boot_that_does_not_come_has_an_exit_code_and_the_copy_can_be_looked_at(writer: vm.VM) -> None:
    said = refused("boot", "--wait-for", "never said", "--wait-timeout", "1s", writer.name, code=9)
    assert "its console has not shown what was waited for within 1s; it still runs" in said
    [[scratch]] = [each["scratch_vms"] for each in snapmount_json("list")]
    assert scratch["state"] == "running"
    assert f"try: less {scratch['console_log']}" in said
    snapmount("delete", "--force", writer.name)
    assert traces.found() == []


def test_a_copy_that_is_paused_is_not_told_to_run(writer: vm.VM) -> None:
    command = [SNAPMOUNT, "boot", "--wait-for", "never said", "--wait-timeout", "5s", writer.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as booting:
        wait_for(running, "the copy runs", vm.BOOT_S)
        writer.virsh("suspend", running()[0])
        said = booting.communicate(timeout=vm.BOOT_S)[1]
    assert booting.returncode == 9
    assert "its console has not shown what was waited for within 5s; it is paused, by somebody" in said
    snapmount("delete", "--force", writer.name)
    assert traces.found() == []


def test_a_copy_that_ends_before_it_is_there_is_told_with_its_last_words_and_leaves_nothing(writer: vm.VM) -> None:
    command = [SNAPMOUNT, "boot", "--name", "snapmount-test-scratch-2", "--wait-for", "never said", writer.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as booting:
        wait_for(running, "the copy runs", vm.BOOT_S)
        [[told]] = [each["scratch_vms"] for each in snapmount_json("list")]
        scratch = vm.VM(told["name"], Path(told["overlay_directory"]))
        wait_for(lambda: UP in scratch.output(), "it has booted", vm.BOOT_S)
        scratch.virsh("destroy", scratch.name)
        said = booting.communicate(timeout=vm.BOOT_S)[1]
    assert booting.returncode == 9
    first, *lines = said.splitlines()
    assert first == "snapmount: snapmount-test-scratch-2 has ended before it was there"
    assert f"  console: {UP}" in lines or any(line.startswith("  console: seq=") for line in lines)
    assert lines[-1].startswith("  try: --keep, ")
    assert traces.found() == []


def test_the_agent_is_waited_for_over_a_restart_of_libvirtd(agent_vm: vm.VM) -> None:
    with subprocess.Popen([SNAPMOUNT, "boot", "--wait-for", "agent", agent_vm.name]) as booting:
        wait_for(running, "the copy runs", vm.BOOT_S)
        [scratch] = running()
        agent_vm.virsh("suspend", scratch)
        with libvirtd.stopped():
            pass
        agent_vm.virsh("resume", scratch)
        assert booting.wait(vm.BOOT_S) == 0
    snapmount("delete", "--force", agent_vm.name)
    assert traces.found() == []


def test_a_copy_without_a_console_is_not_said_to_have_one(clean: None) -> None:
    """The original's name is as long as can be, so that the copy's cannot be made of all of it."""
    with vm.running(f"{vm.PREFIX}-{'mute' * 56}", [vm.Disk("vda")], start=False) as original:
        definition = original.directory / "domain.xml"
        definition.write_text(re.sub("<serial.*</serial>", "", definition.read_text()))
        original.virsh("undefine", original.name)
        original.virsh("define", str(definition))
        original.start(paused=True)
        said = snapmount("boot", original.name).stdout
        assert "console" not in said
        [shown] = snapmount_json("list")
        assert shown["scratch_vms"][0]["console_log"] is None
        assert "has no serial console" in refused("boot", "--wait-for", "login:", original.name, code=4)
        terminal = pty.openpty()[1]
        done = subprocess.run([SNAPMOUNT, "boot", "--console", original.name], stdin=terminal, capture_output=True)
        os.close(terminal)
        assert done.returncode == 4
        assert b"has no serial console, which --console needs" in done.stderr
        [scratch] = running()
        assert original.name.startswith(scratch[: -len("-scratch-0000")])
        snapmount("delete", "--force", original.name)
        assert traces.found() == []


def test_what_cannot_come_is_not_waited_for(writer: vm.VM) -> None:
    said = refused("boot", "--wait-for", "agent", writer.name, code=4)
    assert "has no channel for a guest agent" in said
    assert traces.found() == []


# -- clashes and refusals ----------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused(writer: vm.VM) -> None:
    before = domains()
    said = refused("boot", "--name", writer.name, writer.name, code=4)
    assert f"there is a VM '{writer.name}'" in said
    assert traces.found() == []
    assert domains() == before


async def test_a_uuid_that_libvirt_knows_is_not_taken(
    writer: vm.VM, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapmount(writer.name, mountpoint)
    store, of_original, another = Store.of_user(kinds.check), uuid.UUID(writer.uuid()), uuid.uuid4()
    given = iter([of_original, another])
    monkeypatch.setattr(uuid, "uuid4", lambda: next(given))
    scratch, came = await start_copy(BootRequest(), store.find(writer.name), store)
    assert (scratch.uuid, came) == (str(another), None)
    snapmount("delete", "--force", writer.name)
    assert writer.state() == "running"
    assert uuid.UUID(writer.uuid()) == of_original


def test_a_snapshot_with_a_scratch_vm_is_deleted_by_force_only(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    scratch, told = boot(writer.name)
    for words in (["delete", writer.name], ["umount", str(mountpoint)]):
        said = refused(*words, code=4)
        assert f"in use by the scratch VM {scratch.name} (running)" in said
        assert f"snapmount delete --force {told['snapshot']}" in said
    assert scratch.state() == "running"
    snapmount("delete", "--force", writer.name)
    assert gone(told)
    assert traces.found() == []


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--overlay-dir", "/no/such/directory"], 5, "the overlay directory /no/such/directory does not exist"),
        (["--overlay-dir", "/proc"], 5, "the overlay directory /proc is not writable"),
        (["--name", "a/b"], 2, "cannot be the name of a VM"),
        (["--name", ""], 2, "'' cannot be the name of a VM"),
        (["--console"], 2, "--console needs a terminal"),
        (["--wait-for", "("], 2, "is no regular expression"),
        (["--wait-for", ""], 2, "--wait-for is empty"),
        (["--vcpus", "0"], 2, "0 is not a number from 1 to 4096"),
        (["--memory", "lots"], 2, "'lots' is no size such as 512M or 2G"),
        (["--memory", "9999T"], 4, "the VM cannot be started"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_and_leaves_nothing(writer: vm.VM, options: list[str], code: int, message: str) -> None:
    assert message in refused("boot", *options, writer.name, code=code)
    assert traces.found() == []
    assert not writer.has_job()


def test_a_view_that_qemu_cannot_reach_is_refused_before_anything_is_made(writer: vm.VM, tmp_path: Path) -> None:
    """It lies below a directory that root alone may enter."""
    snapmount(writer.name, tmp_path)
    said = refused("boot", "--connect", "qemu:///session", writer.name, code=2)
    assert "is at qemu:///system, not at qemu:///session" in said
    made = sorted(traces.SCRATCH.iterdir())
    said = refused("boot", writer.name, code=4)
    assert re.search(rf"QEMU, which runs as uid \d+, cannot read {tmp_path}/vda.raw", said)
    assert "try: a snapshot with a MOUNTPOINT that it can reach" in said
    assert sorted(traces.SCRATCH.iterdir()) == made
    snapmount("delete", writer.name)


def test_a_snapshot_that_is_lost_is_refused(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    writer.abort_job()
    wait_for(lambda: snapmount_json("list")[0]["state"] == "lost", "the loss is told")
    assert "cannot be booted: its state is 'lost'" in refused("boot", writer.name, code=4)
    snapmount("delete", writer.name)
