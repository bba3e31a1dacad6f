"""Snapshots of a VM that is shut off: its disks byte for byte, in every way that a snapshot is shown; nobody can write
to them meanwhile, or the snapshot is lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...rig import copies, libiscsi, luks, servers, traces, vm
from ...rig.command import assert_reads_fail, read_direct, refused, snapmount, snapmount_json, state_of
from ...rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
MIB = 1 << 20
ODD_BYTES = 1_000_001


def fill(path: Path) -> None:
    """Random data, some of it at the disk's very end."""
    with path.open("r+b") as f:
        size = f.seek(0, os.SEEK_END)
        for start in (0, size // 3, size - 5000):
            f.seek(start)
            f.write(os.urandom(5000))


def fill_with_qcow2(path: Path) -> None:
    """As a guest may do: the header of an image that rests on a file of the host."""
    size = path.stat().st_size
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", path], check=True)
    os.truncate(path, size)


DISKS = [
    vm.Disk("vda", "raw", fill=fill),
    vm.Disk("vdb", "qcow2", fill=fill),
    vm.Disk("vdc", "chain", fill=fill),
    vm.Disk("vdd", "qcow2-block", 4 * MIB, fill=fill),
    vm.Disk("vde", "block", 4 * MIB, fill=fill),
    vm.Disk("vdf", "raw", ODD_BYTES, fill=fill),
    vm.Disk("vdg", "raw", 2 * MIB, fill=fill_with_qcow2),
]
FILES = ("vda", "vdb")  # of a VM that QEMU's lock keeps from being started


@pytest.fixture(scope="module")
def shared(libvirt: None) -> Iterator[vm.VM]:
    """A VM that is shut off, with disks of all kinds."""
    with vm.running(f"{vm.PREFIX}-off", DISKS, start=False) as off:
        yield off


@pytest.fixture
def off(shared: vm.VM, clean: None) -> Iterator[vm.VM]:
    """That VM, which is shut off after the test too."""
    yield shared
    assert shared.state() == "shut off"


@pytest.fixture
def small(clean: None) -> Iterator[vm.VM]:
    """A VM with two files, for a test that changes them."""
    disks = [vm.Disk("vda", "raw", fill=fill), vm.Disk("vdb", "chain", fill=fill)]
    with vm.running(f"{vm.PREFIX}-small", disks, start=False) as off:
        yield off


def as_qemu_shows(off: vm.VM, disk: vm.Disk, directory: Path) -> bytes:
    form = "qcow2" if "qcow2" in disk.kind or disk.kind == "chain" else "raw"
    image = off.directory / f"{disk.name}.{'img' if form == 'raw' else 'qcow2'}"
    subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", image, directory / "copy"], check=True)
    return (directory / "copy").read_bytes()


def test_every_kind_of_disk_is_shown_byte_for_byte_and_nothing_is_left(
    off: vm.VM, mountpoint: Path, tmp_path: Path
) -> None:
    shown = snapmount_json(off.name, mountpoint)
    assert shown["source"] == "offline"
    for disk, told in zip(DISKS, shown["disks"], strict=True):
        expected = as_qemu_shows(off, disk, tmp_path)
        assert told["size_bytes"] == len(expected)
        for _ in range(2):
            assert read_direct(mountpoint / f"{disk.name}.raw") == expected, disk
    assert (mountpoint / "vda.raw").stat().st_blocks * 512 < DISKS[0].size // 2, "its holes are holes"
    snapmount("delete", off.name)
    assert traces.found() == []


def test_take_list_and_show_tell_that_the_vm_cannot_be_started_and_it_cannot(off: vm.VM, mountpoint: Path) -> None:
    only = [word for name in FILES for word in ("--disk", name)]
    said = snapmount(*only, off.name, mountpoint)
    assert f"{off.name} cannot be started until the snapshot is deleted" in said.stderr
    assert f"{off.name} cannot be started until the snapshot is deleted" in snapmount("show", off.name).stdout
    assert f"active: {off.name} cannot be started until" in snapmount("list").stdout
    assert off.virsh_fails("start", "--paused", off.name)
    assert off.state() == "shut off"
    assert state_of(off.name) == ("active", None)
    read_direct(mountpoint / "vdb.raw")
    snapmount("delete", off.name)
    off.start(paused=True)
    off.virsh("destroy", off.name)


@pytest.mark.parametrize("disk", ["vda", "vdc"], ids=["raw", "base of a chain"])
def test_no_qemu_can_write_to_any_image_of_it(off: vm.VM, mountpoint: Path, disk: str) -> None:
    snapmount("--disk", disk, off.name, mountpoint)
    write = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(off.directory / f"{disk}.img")]
    assert 'Failed to get "write" lock' in subprocess.run(write, capture_output=True, text=True).stderr
    snapmount("delete", off.name)


def test_a_dead_server_s_snapshot_is_recovered_with_the_same_bytes(off: vm.VM, mountpoint: Path) -> None:
    only = [word for name in ("vda", "vdb", "vdc") for word in ("--disk", name)]
    taken = snapmount_json(*only, off.name, mountpoint)
    before = {name: read_direct(mountpoint / name) for name in ("vda.raw", "vdb.raw", "vdc.raw")}
    servers.kill(taken)
    snapmount("recover", taken["id"])
    assert {name: read_direct(mountpoint / name) for name in before} == before
    assert off.virsh_fails("start", "--paused", off.name)
    snapmount("delete", off.name)
    assert traces.found() == []


def test_after_a_restart_of_the_host_it_is_recovered_with_the_same_bytes(off: vm.VM, mountpoint: Path) -> None:
    only = [word for name in ("vda", "vdc") for word in ("--disk", name)]
    taken = snapmount_json(*only, off.name, mountpoint)
    before = {name: read_direct(mountpoint / name) for name in ("vda.raw", "vdc.raw")}
    servers.restart_host(taken, mountpoint)
    assert "re-attached to snapshot" in snapmount("recover").stdout
    assert {name: read_direct(mountpoint / name) for name in before} == before
    snapmount("delete", taken["id"])
    assert traces.found() == []


def test_after_a_restart_of_the_host_changed_images_are_removed_from_the_list(small: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(small.name, mountpoint)
    servers.restart_host(taken, mountpoint)
    change(small.directory / "vda.img")
    assert "vda.img has been written to" in snapmount("recover").stdout
    assert traces.found() == []


def test_a_vm_that_is_started_while_the_server_is_dead_is_let_go(small: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(small.name, mountpoint)
    servers.kill(taken)
    small.start(paused=True)
    said = snapmount("recover", taken["id"]).stdout
    assert "could not be re-attached, and has been removed" in said
    assert small.state() == "paused"
    assert traces.found() == []


def change(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"changed")


@pytest.mark.parametrize(
    ("image", "do", "told"),
    [
        ("vda.img", change, "vda.img has been written to"),
        ("vda.img", lambda path: path.rename(path.with_name("moved")), "vda.img has been removed or renamed"),
        ("vdb.img", Path.unlink, "vdb.img has been removed or renamed"),
        ("vdb.qcow2", lambda path: os.truncate(path, 4096), "vdb.qcow2 has 4096 bytes now"),
    ],
    ids=["written", "renamed", "base removed", "truncated"],
)
def test_images_that_are_changed_are_lost_and_no_wrong_data(
    small: vm.VM, mountpoint: Path, image: str, do: object, told: str
) -> None:
    snapmount(small.name, mountpoint)
    for disk in ("vda", "vdb"):
        read_direct(mountpoint / f"{disk}.raw")  # by the fastest way there is, from then on
    do(small.directory / image)  # type: ignore[operator]
    wait_for(lambda: state_of(small.name)[0] == "lost", "it is lost")
    assert told in str(state_of(small.name)[1])
    for disk in ("vda", "vdb"):
        assert_reads_fail(mountpoint / f"{disk}.raw")
    snapmount("delete", small.name)
    assert traces.found() == []


def test_a_lost_snapshot_does_not_keep_the_vm_from_being_started(small: vm.VM, mountpoint: Path) -> None:
    snapmount(small.name, mountpoint)
    os.utime(small.directory / "vda.img")
    wait_for(lambda: state_of(small.name)[0] == "lost", "it is lost")
    wait_for(lambda: not small.virsh_fails("start", "--paused", small.name), "the VM can be started")
    snapmount("delete", small.name)


def test_a_daemon_that_is_killed_is_a_loss_that_is_told(off: vm.VM, mountpoint: Path) -> None:
    snapmount("--disk", "vdb", off.name, mountpoint)
    (pid,) = traces.storage_daemons()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state_of(off.name)[0] == "lost", "it is lost")
    assert state_of(off.name)[1] == "qemu-storage-daemon was killed (SIGKILL)"
    assert_reads_fail(mountpoint / "vdb.raw")
    snapmount("delete", off.name)


def test_with_a_disk_that_nothing_locks_the_start_of_the_vm_is_a_loss(off: vm.VM, mountpoint: Path) -> None:
    said = snapmount("--disk", "vdd", "--disk", "vde", off.name, mountpoint).stderr
    assert f"the snapshot is lost if {off.name} is started: vdd and vde" in said
    off.start(paused=True)
    wait_for(lambda: state_of(off.name)[0] == "lost", "it is lost")
    assert state_of(off.name)[1] == f"{off.name} was started"
    assert_reads_fail(mountpoint / "vde.raw")
    off.virsh("destroy", off.name)
    snapmount("delete", off.name)


def test_a_scratch_vm_boots_on_it(off: vm.VM) -> None:
    scratch, told = copies.boot("--disk", "vda", "--wait-for", copies.UP, off.name)
    assert off.state() == "shut off"
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: copies.gone(told), "nothing is left of the scratch VM")
    wait_for(lambda: traces.found() == [], "the snapshot has ended with it")


def test_its_disks_are_luns_and_are_so_again_after_a_crash(off: vm.VM, tmp_path: Path) -> None:
    libiscsi.skip_where_missing()
    only = [word for name in FILES for word in ("--disk", name)]
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", portal, *only, off.name)
    expected = [as_qemu_shows(off, disk, tmp_path) for disk in DISKS[:2]]
    assert libiscsi.read_luns(taken) == expected
    servers.kill(taken)
    snapmount("recover", taken["id"])
    assert libiscsi.read_luns(taken) == expected
    snapmount("delete", taken["id"])
    assert traces.found() == []


def test_its_disks_can_be_attached(off: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    snapmount("--disk", "vdb", off.name, mountpoint)
    snapmount("attach", off.name, helper.name)
    assert len(helper.targets()) == 2
    snapmount("detach", off.name)
    snapmount("delete", off.name)


def test_a_vm_in_the_wrong_state_for_a_source_is_refused(off: vm.VM, writer: vm.VM, mountpoint: Path) -> None:
    assert f"{off.name} is shut off, and has no QEMU for a backup job" in refused(
        "--source", "pull", off.name, mountpoint, code=4
    )
    assert f"{writer.name} is not shut off" in refused("--source", "offline", writer.name, mountpoint, code=4)
    assert "there is no guest to quiesce" in refused("--quiesce", off.name, mountpoint, code=4)


def test_an_image_that_another_process_writes_to_is_refused(small: vm.VM, mountpoint: Path) -> None:
    with (small.directory / "vda.img").open("r+b"):
        said = refused(small.name, mountpoint, code=4)
    assert f"vda ({small.directory}/vda.img) is open for writing by process {os.getpid()}" in said


def test_a_backing_file_without_a_format_is_refused_with_the_command_that_gives_it_one(
    small: vm.VM, mountpoint: Path
) -> None:
    top = small.directory / "vdb.qcow2"
    content = top.read_bytes()
    top.write_bytes(content.replace(bytes.fromhex("e2792aca"), bytes.fromhex("12345678"), 1))  # an unknown extension
    said = refused(small.name, mountpoint, code=4)
    assert "does not tell the format of" in said
    assert f"qemu-img rebase -u -f qcow2 -b {small.directory}/vdb.middle.qcow2 -F FORMAT {top}" in said


def test_an_encrypted_image_is_refused(small: vm.VM, mountpoint: Path) -> None:
    image = small.directory / "vdb.qcow2"
    image.unlink()
    luks.encrypt(small.directory / "vda.img", image)
    assert "vdb.qcow2 is encrypted" in refused(small.name, mountpoint, code=4)


def test_a_volume_of_a_pool_is_found(clean: None, mountpoint: Path, tmp_path: Path) -> None:
    with vm.running(f"{vm.PREFIX}-pool", [vm.Disk("vda", "qcow2", fill=fill)], start=False) as off:
        off.virsh("pool-create-as", f"{vm.PREFIX}-pool", "dir", "--target", str(off.directory))
        try:
            xml = off.virsh("dumpxml", off.name).replace("<disk type='file'", "<disk type='volume'")
            source = f"<source pool='{vm.PREFIX}-pool' volume='vda.qcow2'/>"
            (off.directory / "new.xml").write_text(xml.replace(f"<source file='{off.directory}/vda.qcow2'/>", source))
            off.virsh("define", str(off.directory / "new.xml"))
            snapmount(off.name, mountpoint)
            assert read_direct(mountpoint / "vda.raw") == as_qemu_shows(off, off.disks[0], tmp_path)
            snapmount("delete", off.name)
        finally:
            off.virsh("pool-destroy", f"{vm.PREFIX}-pool")


def test_a_saved_vm_is_named_as_such(clean: None, mountpoint: Path) -> None:
    with vm.running(f"{vm.PREFIX}-saved", [vm.Disk("vda", fill=fill)], paused=True) as off:
        off.virsh("managedsave", off.name)
        said = snapmount(off.name, mountpoint).stderr
        assert f"{off.name} is saved: what its guest has not written to its disks lies in its saved memory" in said
        snapmount("delete", off.name)
        off.virsh("managedsave-remove", off.name)
