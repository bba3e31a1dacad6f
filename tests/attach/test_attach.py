"""A snapshot's disks in another VM, on real parts: they are seen there, and nothing of them stays behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ..rig import servers, traces, vm
from ..rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm


def attach(*words: str | Path) -> list[dict[str, Any]]:
    """Attach, and return what is told of each disk."""
    told: list[dict[str, Any]] = snapmount_json("attach", *words)["attachments"]
    return told


def sees(of: vm.VM, disk: dict[str, Any], what: str) -> None:
    """Wait until the guest has told this of the disk."""
    wait_for(lambda: f"disk {disk['serial']}: {what}" in of.output(), f"the guest tells: {what}", vm.BOOT_S)


def sha256(file: Path, length: int | None = None) -> str:
    return hashlib.sha256(read_direct(file)[:length]).hexdigest()


# -- the disks in the helper -------------------------------------------------------------------------------------------


@pytest.mark.sample
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
    for each in disks:
        first = sha256(mountpoint / f"{each['disk']}.raw", 4 * vm.MIB)
        sees(helper, each, f"ro=1 bytes={32 * vm.MIB} first={first}")
        sees(helper, each, "a write fails")
    assert [sha256(mountpoint / name) for name in ("vda.raw", "vdb.raw")] == before
    assert [(mountpoint / name).stat() for name in ("vda.raw", "vdb.raw")] == owners, "nothing was relabelled"
    assert "vdb" not in helper.virsh("dumpxml", "--inactive", helper.name)
    assert snapmount_json("show", writer.name)["attachments"] == disks
    assert f"\n            {helper.name} " in snapmount("list").stdout
    assert disks[0]["device"] in snapmount("show", writer.name).stdout

    told = snapmount_json("detach", writer.name, helper.name)
    assert told == {"snapshot": taken["id"], "detached": disks}

    for each in disks:
        sees(helper, each, "gone")
    assert snapmount_json("show", writer.name)["attachments"] == []
    assert "no disk of it was attached" in snapmount("detach", writer.name, helper.name).stdout
    snapmount("detach", writer.name)
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_snapshot_that_nobody_has_mounted_can_be_attached_too_and_on_scsi(writer: vm.VM, helper: vm.VM) -> None:
    scratch = snapmount_json("boot", writer.name)
    disks = attach(writer.name, helper.name, "--bus", "scsi")
    assert helper.targets() == ["vda", "sda", "sdb"] == ["vda", *(each["target"] for each in disks)]
    assert disks[0]["device"] == f"/dev/disk/by-id/*_{scratch['snapshot']}-vda*"
    assert disks[0]["serial"] in helper.virsh("dumpxml", helper.name)
    said = refused("attach", writer.name, scratch["name"], "--bus", "scsi", code=4)
    assert f"{scratch['name']} has no scsi controller" in said
    snapmount("delete", "--force", writer.name)
    assert traces.found() == []


def test_all_disks_are_attached_or_none(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    """Another file, which only root may read, lies over that of the second disk."""
    snapmount(writer.name, mountpoint)
    secret = helper.directory / "secret"
    secret.touch(mode=0o600)
    subprocess.run(["mount", "--bind", secret, mountpoint / "vdb.raw"], check=True)
    try:
        said = refused("attach", "-v", writer.name, helper.name, code=4)
    finally:
        subprocess.run(["umount", mountpoint / "vdb.raw"], check=True)
    assert f"plugging vdb into {helper.name} as vdc" in said
    assert f"{helper.name}: the device cannot be plugged in" in said
    assert helper.targets() == ["vda"]
    assert snapmount_json("show", writer.name)["attachments"] == []
    snapmount("delete", writer.name)


def test_two_commands_at_once_take_turns(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    commands = [[SNAPMOUNT, "attach", writer.name, helper.name, "--disk", disk] for disk in ("vda", "vdb")]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait(vm.BOOT_S) for process in running] == [0, 0]
    assert helper.targets() == ["vda", "vdb", "vdc"]
    snapmount("delete", "--force", writer.name)


def test_a_snapshot_of_the_helper_leaves_attached_disks_out(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    """Else they could not be detached while it lives, and two VMs could read each other's snapshots in a circle."""
    taken = snapmount_json(writer.name, mountpoint)
    [disk] = attach(writer.name, helper.name, "--disk", "vda")
    with tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-mount-", dir="/var/tmp") as other:
        own = snapmount_json(helper.name, other)
        assert own["left_out"] == [{"name": disk["target"], "why": f"attached, from snapshot {taken['id']}"}]
        snapmount("detach", writer.name)
        snapmount("delete", writer.name, helper.name)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_attached_is_refused(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    said = refused("attach", writer.name, helper.name, code=3)
    assert f"try: snapmount {writer.name} MOUNTPOINT" in said
    snapmount(writer.name, mountpoint)
    said = refused("attach", writer.name, f"{vm.HELPER}s", code=3)
    assert f"did you mean '{vm.HELPER}'" in said
    assert "there is no disk 'vdq'; it has vda, vdb" in refused(
        "attach", "--disk", "vdq", writer.name, vm.HELPER, code=3
    )
    assert "cannot have its own snapshot attached" in refused("attach", writer.name, writer.name, code=4)
    assert "has no usb controller" in refused("attach", "--bus", "usb", writer.name, vm.HELPER, code=4)
    assert "invalid choice: 'sata'" in refused("attach", "--bus", "sata", writer.name, vm.HELPER, code=2)
    assert f"there is no VM '{vm.HELPER}s'" in refused("detach", writer.name, f"{vm.HELPER}s", code=3)
    [disk] = attach(writer.name, vm.HELPER, "--disk", "vdb")
    said = refused("attach", writer.name, vm.HELPER, code=4)
    assert "vdb of snapshot" in said
    assert "is attached to snapmount-test-helper already, as vdb" in said
    assert helper.targets() == ["vda", disk["target"]]
    writer.abort_job()
    wait_for(lambda: snapmount_json("list")[0]["state"] == "lost", "the loss is told")
    assert "cannot be attached: its state is 'lost'" in refused("attach", writer.name, vm.HELPER, code=4)
    snapmount("detach", writer.name)
    snapmount("delete", writer.name)


def test_a_view_that_the_helper_s_qemu_does_not_see_is_refused(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    """It lies below a mount that passes nothing on to QEMU's mount namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", mountpoint], check=True)
    try:
        subprocess.run(["mount", "--make-private", mountpoint], check=True)
        view = mountpoint / "view"
        view.mkdir(mode=0o755)
        snapmount(writer.name, view)
        said = refused("attach", writer.name, helper.name, code=4)
        assert f"QEMU of {helper.name} (process {helper.qemu_pid()}) does not see {view}" in said
        assert f"try: mount --make-rshared /   (and start {helper.name} anew)" in said
        mountpoint.chmod(0o700)
        said = refused("attach", writer.name, helper.name, code=4)
        assert f"cannot read {view}/vda.raw" in said
        snapmount("delete", writer.name)
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)


def test_a_view_at_a_path_that_libvirt_cannot_be_told_is_refused(
    writer: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    view = mountpoint / os.fsdecode(b"\xff")
    view.mkdir()
    snapmount(writer.name, view)
    for words in (["attach", writer.name, helper.name], ["boot", writer.name]):
        said = refused(*words, code=4)
        assert f"the mountpoint {mountpoint}/\\udcff has a name that is not UTF-8" in said
        assert "try: a snapshot with a MOUNTPOINT that it can reach" in said
    shown = snapmount_json("show", writer.name)
    assert (shown["scratch_vms"], shown["attachments"]) == ([], [])
    snapmount("delete", writer.name)


# -- the end of the snapshot, of the helper and of the original --------------------------------------------------------


def test_delete_refuses_while_disks_are_attached_and_detaches_them_by_force(
    writer: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    snapmount(writer.name, mountpoint)
    attach(writer.name, helper.name, "--disk", "vda")
    for words in (["delete", writer.name], ["umount", str(mountpoint)]):
        said = refused(*words, code=4)
        assert f"its disks are attached to {helper.name}" in said
        assert "try: snapmount detach " in said
    servers.kill(snapmount_json("show", writer.name))
    assert f"attached to {helper.name}" in refused("delete", writer.name, code=4)
    done = snapmount("delete", "--force", writer.name)
    assert done.stderr == ""
    assert done.stdout.endswith(f" is ended; disk vda has been unplugged from {helper.name}\n")
    assert helper.targets() == ["vda"]
    assert traces.found() == []


def test_a_disk_whose_record_is_broken_is_unplugged_by_force(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    attach(writer.name, helper.name, "--disk", "vda")
    (record,) = (traces.RUNTIME / taken["id"] / "attached").iterdir()
    record.write_text("{")
    said = refused("delete", writer.name, code=4)
    assert f"{record} cannot be read" in said
    assert f"try: snapmount delete --force {taken['id']}" in said
    assert f"{record} cannot be read" in snapmount("delete", "--force", writer.name).stderr
    assert helper.targets() == ["vda"]
    assert traces.found() == []


def test_sigterm_to_the_server_detaches(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    attach(writer.name, helper.name, "--disk", "vda")
    os.kill(taken["server"]["pid"], signal.SIGTERM)
    wait_for(lambda: not traces.found(), "the snapshot has ended")
    assert helper.targets() == ["vda"]


def test_what_a_killed_attach_has_plugged_in_is_unplugged(writer: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    with subprocess.Popen([SNAPMOUNT, "attach", writer.name, helper.name], stdout=subprocess.DEVNULL) as attaching:
        wait_for(lambda: list(Path("/run/snapmount", taken["id"], "attached").glob("*.json")), "a record is written")
        attaching.kill()
    snapmount("detach", writer.name)
    assert helper.targets() == ["vda"]
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_helper_that_has_ended_keeps_nothing_from_being_deleted(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    with vm.running(f"{vm.HELPER}-own", [vm.Disk("vda")], start=False) as own:
        assert f"{own.name} is shut off" in refused("attach", writer.name, own.name, code=4)
        for _ in range(2):
            own.virsh("start", own.name)
            assert own.targets() == ["vda"]
            attach(writer.name, own.name)
            assert own.targets() == ["vda", "vdb", "vdc"]
            own.virsh("destroy", own.name)
            assert snapmount_json("show", writer.name)["attachments"] == []
        snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_guest_that_does_not_let_go_is_told_and_holds_up_no_forced_delete(
    writer: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    disk, _ = attach(writer.name, helper.name)
    sees(helper, disk, "a write fails")
    helper.virsh("suspend", helper.name)
    try:
        said = refused("detach", "--wait-timeout", "1s", "--disk", "vda", writer.name, code=4)
        assert f"still has vdb, which is vda of snapshot {taken['id']}: the guest has not let go" in said
        assert f"attached to {helper.name}" in refused("delete", writer.name, code=4)
        said = snapmount("delete", "--force", writer.name).stderr
        assert f"{helper.name} still has vdb" in said
        assert "its reads will fail from now on" in said
        assert traces.found() == []
    finally:
        helper.virsh("resume", helper.name)
    wait_for(lambda: helper.targets() == ["vda"], "the guest has let go")


def test_the_helper_sees_the_file_system_and_gets_io_errors_when_the_original_ends(
    helper: vm.VM, mountpoint: Path
) -> None:
    with vm.running(
        f"{vm.PREFIX}-own", [vm.Disk("vda", "qcow2", ext4=True)], command_line="snapmount.ext4=vda"
    ) as original:
        wait_for(lambda: original.lines() > 0, "the guest has written")
        snapmount(original.name, mountpoint)
        [disk] = attach(mountpoint, helper.name)
        sees(helper, disk, "its file system holds log")
        assert f"disk {disk['serial']}: a read fails" not in helper.output()
        original.virsh("destroy", original.name)
        sees(helper, disk, "a read fails")
        assert helper.state() == "running"
        snapmount("detach", mountpoint)
        sees(helper, disk, "gone")
        snapmount("delete", mountpoint)
    assert traces.found() == []
