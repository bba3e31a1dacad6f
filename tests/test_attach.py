"""A snapshot's disks in another VM, on real parts: they are seen there, and nothing of them stays behind."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .rig import traces, vm
from .rig.command import read_direct, refused, snapmount, snapmount_json
from .rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
HELPER = f"{vm.PREFIX}-helper"


@pytest.fixture(scope="module")
def shared_helper(libvirt: None) -> Iterator[vm.VM]:
    """A VM that tells of the disks that are plugged into it."""
    with vm.running(HELPER, [vm.Disk("vda")], command_line="snapmount.watch") as running:
        yield running


@pytest.fixture
def helper(shared_helper: vm.VM, clean: None) -> Iterator[vm.VM]:
    """The shared helper; whatever the test did, it runs on, with its own disk alone."""
    yield shared_helper
    assert shared_helper.state() == "running"
    assert targets(shared_helper) == ["vda"]


@pytest.fixture
def own_helper(clean: None) -> Iterator[vm.VM]:
    """A helper for a test that stops or breaks it."""
    with vm.running(f"{HELPER}-own", [vm.Disk("vda")], command_line="snapmount.watch") as running:
        yield running


def targets(of: vm.VM) -> list[str]:
    """The disks of a VM, as libvirt names them."""
    return [line.split()[0] for line in of.virsh("domblklist", of.name).splitlines()]


def attach(*words: str | Path) -> list[dict[str, Any]]:
    """Attach, and return what is told of each disk."""
    told: list[dict[str, Any]] = snapmount_json("attach", *words)["attachments"]
    return told


def sees(of: vm.VM, disk: dict[str, Any], what: str) -> None:
    """Wait until the guest has told this of the disk."""
    wait_for(lambda: f"disk {disk['serial']}: {what}" in of.output(), f"the guest tells: {what}", vm.BOOT_S)


def sha256(file: Path) -> str:
    return hashlib.sha256(read_direct(file)).hexdigest()


def kill_server(snapshot: str) -> None:
    os.kill(snapmount_json("show", snapshot)["server"]["pid"], signal.SIGKILL)
    wait_for(lambda: snapmount_json("show", snapshot)["state"] == "dead", "the server is dead")


# -- the disks in the helper -------------------------------------------------------------------------------------------


def test_the_helper_reads_the_snapshot_s_disks_and_cannot_write_them(
    writer: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    before = [sha256(mountpoint / name) for name in ("vda.raw", "vdb.raw")]
    owners = [(mountpoint / name).stat() for name in ("vda.raw", "vdb.raw")]

    disks = attach(writer.name, helper.name)

    assert [(each["disk"], each["target"], each["state"]) for each in disks] == [
        ("vda", "vdb", "attached"),
        ("vdb", "vdc", "attached"),
    ]
    assert [each["device"] for each in disks] == [
        f"/dev/disk/by-id/virtio-{taken['id']}-{name}" for name in ("vda", "vdb")
    ]
    for each, digest in zip(disks, before, strict=True):
        sees(helper, each, f"ro=1 bytes={32 * vm.MIB} sha256={digest}")
        sees(helper, each, "a write fails")
    assert [sha256(mountpoint / name) for name in ("vda.raw", "vdb.raw")] == before
    assert [(mountpoint / name).stat() for name in ("vda.raw", "vdb.raw")] == owners, "nothing was relabelled"
    assert "vdb" not in helper.virsh("dumpxml", "--inactive", helper.name)
    assert snapmount_json("show", writer.name)["attachments"] == disks
    assert f"\n            {helper.name} " in snapmount("list").stdout
    assert disks[0]["device"] in snapmount("show", writer.name).stdout

    snapmount("detach", writer.name, helper.name)

    for each in disks:
        sees(helper, each, "gone")
    assert snapmount_json("show", writer.name)["attachments"] == []
    snapmount("detach", writer.name, helper.name)
    snapmount("detach", writer.name)
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_file_system_on_the_disk_is_seen(helper: vm.VM, mountpoint: Path) -> None:
    disks = [vm.Disk("vda", "qcow2", ext4=True), vm.Disk("vdb")]
    with vm.running(f"{vm.PREFIX}-own", disks, command_line="snapmount.ext4=vda") as original:
        wait_for(lambda: original.lines() > 0, "the guest has written")
        snapmount(original.name, mountpoint)
        [disk] = attach(mountpoint, helper.name, "--disk", "vda")
        sees(helper, disk, "its file system holds log")
        snapmount("detach", mountpoint, "--disk", "vda")


def test_a_snapshot_that_nobody_has_mounted_can_be_attached_on_scsi(own_vm: vm.VM, clean: None) -> None:
    controller = "<controller type='scsi' model='virtio-scsi'/>"
    with vm.running(f"{HELPER}-scsi", [vm.Disk("vda")], extra_devices=controller) as other:
        scratch = snapmount_json("boot", own_vm.name)
        [first, _] = attach(own_vm.name, other.name, "--bus", "scsi")
        assert (first["target"], first["device"]) == ("sda", f"/dev/disk/by-id/*_{scratch['snapshot']}-vda*")
        assert targets(other) == ["vda", "sda", "sdb"]
        said = refused("attach", own_vm.name, scratch["name"], "--bus", "scsi", code=4)
        assert f"{scratch['name']} has no scsi controller" in said
        snapmount("delete", "--force", own_vm.name)
        assert targets(other) == ["vda"]
    assert traces.found() == []


def test_all_disks_are_attached_or_none(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    """The second one's alias is taken, so that libvirt refuses it."""
    taken = snapmount_json(writer.name, mountpoint)
    blocker = helper.directory / "blocker.xml"
    blocker.write_text(
        f"<disk type='file'><source file='{mountpoint / 'vda.raw'}'><seclabel model='dac' relabel='no'/></source>"
        f"<target dev='vdz' bus='virtio'/><readonly/><serial>{taken['id']}-vdb</serial></disk>"
    )
    helper.virsh("attach-device", "--live", helper.name, str(blocker))
    said = refused("attach", writer.name, helper.name, code=4)
    assert "the device cannot be plugged in" in said
    assert targets(helper) == ["vda", "vdz"]
    assert snapmount_json("show", writer.name)["attachments"] == []
    helper.virsh("detach-disk", "--live", helper.name, "vdz")
    wait_for(lambda: targets(helper) == ["vda"], "the guest has let go")
    snapmount("delete", writer.name)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_attached_is_refused(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    said = refused("attach", writer.name, helper.name, code=3)
    assert f"try: snapmount {writer.name} MOUNTPOINT" in said
    snapmount(writer.name, mountpoint)
    said = refused("attach", writer.name, f"{HELPER}s", code=3)
    assert f"did you mean '{HELPER}'" in said
    assert "there is no disk 'vdq'; it has vda, vdb" in refused("attach", "--disk", "vdq", writer.name, HELPER, code=3)
    assert "cannot have its own snapshot attached" in refused("attach", writer.name, writer.name, code=4)
    assert "has no usb controller" in refused("attach", "--bus", "usb", writer.name, HELPER, code=4)
    assert "invalid choice: 'sata'" in refused("attach", "--bus", "sata", writer.name, HELPER, code=2)
    assert f"there is no VM '{HELPER}s'" in refused("detach", writer.name, f"{HELPER}s", code=3)
    [disk] = attach(writer.name, HELPER, "--disk", "vdb")
    said = refused("attach", writer.name, HELPER, code=4)
    assert "vdb of snapshot" in said
    assert "is attached to snapmount-test-helper already, as vdb" in said
    assert targets(helper) == ["vda", disk["target"]]
    kill_server(writer.name)
    assert "cannot be attached: it is dead" in refused("attach", writer.name, HELPER, code=4)
    snapmount("detach", writer.name)
    snapmount("delete", writer.name)
    with vm.running(f"{HELPER}-off", [], start=False) as off:
        snapmount(writer.name, mountpoint)
        assert f"{off.name} is shut off" in refused("attach", writer.name, off.name, code=4)
        snapmount("delete", writer.name)


# -- the end of the snapshot, of the helper and of the original --------------------------------------------------------


def test_delete_refuses_while_disks_are_attached_and_detaches_them_by_force(
    writer: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    snapmount(writer.name, mountpoint)
    [disk] = attach(writer.name, helper.name, "--disk", "vda")
    for words in (["delete", writer.name], ["umount", str(mountpoint)]):
        said = refused(*words, code=4)
        assert f"its disks are attached to {helper.name}" in said
        assert "try: snapmount detach " in said
    kill_server(writer.name)
    assert f"attached to {helper.name}" in refused("delete", writer.name, code=4)
    assert snapmount("delete", "--force", writer.name).stderr == ""
    sees(helper, disk, "gone")
    assert traces.found() == []


def test_sigterm_to_the_server_detaches(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    [disk] = attach(writer.name, helper.name, "--disk", "vda")
    os.kill(taken["server"]["pid"], signal.SIGTERM)
    wait_for(lambda: not traces.found(), "the snapshot has ended")
    sees(helper, disk, "gone")


def test_a_helper_that_has_ended_keeps_nothing_from_being_deleted(
    writer: vm.VM, own_helper: vm.VM, mountpoint: Path
) -> None:
    snapmount(writer.name, mountpoint)
    attach(writer.name, own_helper.name)
    own_helper.virsh("destroy", own_helper.name)
    assert snapmount_json("show", writer.name)["attachments"] == []
    own_helper.start()
    assert targets(own_helper) == ["vda"]
    attach(writer.name, own_helper.name)
    own_helper.virsh("destroy", own_helper.name)
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_guest_that_does_not_let_go_is_told_and_holds_up_no_forced_delete(
    writer: vm.VM, own_helper: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    disk, _ = attach(writer.name, own_helper.name)
    sees(own_helper, disk, "a write fails")
    own_helper.virsh("suspend", own_helper.name)
    said = refused("detach", "--wait-timeout", "1s", "--disk", "vda", writer.name, code=4)
    assert f"still has vdb, which is vda of snapshot {taken['id']}: the guest has not let go of it within 1 s" in said
    assert f"attached to {own_helper.name}" in refused("delete", writer.name, code=4)
    said = snapmount("delete", "--force", writer.name).stderr
    assert f"{own_helper.name} still has vdb" in said
    assert "its reads will fail from now on" in said
    assert traces.found() == []
    own_helper.virsh("resume", own_helper.name)
    wait_for(lambda: targets(own_helper) == ["vda"], "the guest has let go")


def test_the_helper_gets_io_errors_when_the_original_ends_and_lives_on(
    own_vm: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    snapmount(own_vm.name, mountpoint)
    disk, _ = attach(own_vm.name, helper.name)
    sees(helper, disk, "a write fails")
    assert f"disk {disk['serial']}: a read fails" not in helper.output()
    own_vm.virsh("destroy", own_vm.name)
    sees(helper, disk, "a read fails")
    assert helper.state() == "running"
    snapmount("detach", mountpoint)
    sees(helper, disk, "gone")
    snapmount("delete", mountpoint)
    assert traces.found() == []
