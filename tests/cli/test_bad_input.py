"""Bad input gets a clear error with a remedy and a documented exit code, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ..rig import libvirtd, traces, vm
from ..rig.command import SNAPMOUNT, refused, snapmount, snapmount_json

pytestmark = pytest.mark.vm
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_is_left(clean: None) -> Iterator[None]:
    yield
    assert traces.found() == []


@contextlib.contextmanager
def small_file_system(parent: Path, size: int) -> Iterator[Path]:
    """A tmpfs that QEMU does not see: what is mounted below a private mount does not spread to other namespaces."""
    directory = parent / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "snapmount-test", str(directory)]
    private = [["mount", "--bind", str(parent), str(parent)], ["mount", "--make-private", str(parent)]]
    for command in (*private, mount):
        subprocess.run(command, check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)
        subprocess.run(["umount", parent], check=True)
        directory.rmdir()


def test_no_such_vm_suggests_near_names(writer: vm.VM, mountpoint: Path) -> None:
    message = refused(writer.name.replace("test", "tset"), mountpoint, code=3)
    assert f"did you mean '{writer.name}'?" in message
    assert "try: virsh -c qemu:///system list --all" in message


def test_a_vm_that_is_shut_off_is_named_so(clean: None, mountpoint: Path) -> None:
    with vm.running(f"{vm.PREFIX}-off", [vm.Disk("vda")], start=False) as off:
        message = refused("--source", "pull", off.name, mountpoint, code=4)
    assert "is shut off" in message
    assert "offline" in message
    assert f"try: virsh start {off.name}" in message


def test_a_second_snapshot_of_a_vm_names_the_first(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    other = mountpoint.with_name(mountpoint.name + "-second")
    other.mkdir()
    try:
        message = refused(writer.name, other, code=4)
    finally:
        other.rmdir()
    assert f"has a snapshot already: {taken['id']}, mounted at {mountpoint}" in message
    assert f"try: snapmount delete {taken['id']}" in message
    message = refused(writer.name, mountpoint, code=4)
    assert f"a snapshot is already mounted on {mountpoint}" in message
    assert f"try: snapmount umount {mountpoint}" in message
    snapmount("delete", writer.name)


def test_mountpoints_that_cannot_be(writer: vm.VM, mountpoint: Path) -> None:
    missing = mountpoint / "a b"
    message = refused(writer.name, missing, code=3)
    assert "does not exist" in message
    assert f"try: mkdir -p '{missing}'" in message

    assert "is not a directory" in refused(writer.name, "/etc/passwd", code=4)
    assert "is not empty" in refused(writer.name, "/etc", code=4)
    assert "a file system (proc) is already mounted on /proc" in refused(writer.name, "/proc", code=4)


def test_unknown_disks(writer: vm.VM, mountpoint: Path) -> None:
    message = refused(writer.name, mountpoint, "--disk", "vdz", code=3)
    assert "there is no disk 'vdz'; the VM has vda, vdb, sda" in message
    assert "'../vda'" in refused(writer.name, mountpoint, "--exclude-disk", "../vda", code=3)
    assert "CD-ROM" in refused(writer.name, mountpoint, "--disk", "sda", code=4)
    message = refused(writer.name, mountpoint, "--exclude-disk", "vda", "--exclude-disk", "vdb", code=3)
    assert "no disk is left" in message


def test_scratch_directories_that_cannot_be(writer: vm.VM, mountpoint: Path, tmp_path: Path) -> None:
    message = refused(writer.name, mountpoint, "--scratch-dir", mountpoint / "none", code=5)
    assert "does not exist" in message
    assert f"try: mkdir {mountpoint / 'none'}" in message
    # below a directory that root alone may enter
    assert tmp_path.parent.parent.stat().st_mode & 0o077 == 0
    message = refused(writer.name, mountpoint, "--scratch-dir", tmp_path, code=5)
    assert "is not writable by QEMU, which runs as uid" in message
    assert "Permission denied" in message
    assert os.listdir(tmp_path) == []
    assert "is not a directory" in refused(writer.name, mountpoint, "--scratch-dir", "/etc/passwd", code=5)


def test_a_scratch_directory_that_is_too_small_is_refused_beforehand(writer: vm.VM, mountpoint: Path) -> None:
    with small_file_system(writer.directory, 60 * MIB) as small:
        message = refused(writer.name, mountpoint, "--scratch-dir", small, code=5)
        assert os.listdir(small) == []
    assert f"{small} has 60 MiB free" in message
    assert "at least 64 MiB" in message
    assert "--scratch-dir" in message.splitlines()[-1], message


def test_a_file_system_that_qemu_does_not_see_is_refused(writer: vm.VM, mountpoint: Path) -> None:
    with small_file_system(writer.directory, 256 * MIB) as unseen:
        message = refused(writer.name, mountpoint, "--scratch-dir", unseen, code=5)
        assert os.listdir(unseen) == []
    assert "its file system was mounted after the VM was started" in message


def test_a_worst_case_that_does_not_fit_is_warned_of_with_both_figures(clean: None, mountpoint: Path) -> None:
    with vm.running(f"{vm.PREFIX}-large", [vm.Disk("vda", "qcow2", size=4 << 40)], paused=True) as large:
        scratch = large.directory / "scratch <&'\"> ü"
        scratch.mkdir()
        done = snapmount(large.name, mountpoint, "--scratch-dir", scratch)
        assert f"snapmount: warning: {scratch} has" in done.stderr
        assert "may need 4 TiB" in done.stderr
        assert len(os.listdir(scratch)) == 1
        snapmount("delete", large.name)
        assert os.listdir(scratch) == []


def test_libvirt_that_cannot_be_reached(libvirt: None, mountpoint: Path) -> None:
    message = refused("vm1", mountpoint, "--connect", "qemu:///system?socket=/nonexistent", code=6)
    assert "libvirt cannot be reached at qemu:///system?socket=/nonexistent" in message
    assert "try: virsh -c 'qemu:///system?socket=/nonexistent' list" in message
    assert "must run on the host of the VM" in refused("vm1", mountpoint, "-c", "qemu+unix://host/system", code=2)
    assert "only QEMU/KVM" in refused("vm1", mountpoint, "-c", "lxc:///", code=2)
    assert "only QEMU/KVM" in refused("vm1", mountpoint, "-c", "qemu+ssh://host/system", code=2)


def test_libvirt_that_does_not_run_is_to_be_started_as_the_doctor_says(clean: None, mountpoint: Path) -> None:
    with libvirtd.stopped():
        message = refused("vm1", mountpoint, code=6)
        examined = snapmount("doctor", check=False).stdout
    assert "libvirt cannot be reached at qemu:///system" in message
    remedy = message.splitlines()[-1].removeprefix("  try: ")
    assert "libvirtd" in remedy
    assert remedy in examined


def test_a_verb_that_was_mistyped_is_no_vm(libvirt: None, mountpoint: Path) -> None:
    """Neither is the mountpoint complained of, which is a VM in truth."""
    message = refused("delet", "vm1", code=3)
    assert message.splitlines()[0].endswith("there is no VM 'delet' at qemu:///system; did you mean the verb delete?")
    assert "did you mean" not in refused("take", "delet", mountpoint, code=3)
    message = refused("lists", "--iscsi", code=3)
    assert "did you mean the verb list?" in message


def test_without_dev_fuse_the_message_says_so(writer: vm.VM, mountpoint: Path) -> None:
    """In a mount namespace whose /dev has no fuse."""
    hide = 'mount -t tmpfs none /dev && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "-"]
    done = subprocess.run(
        [*command, SNAPMOUNT, writer.name, mountpoint], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout) == (7, "")
    assert "/dev/fuse is missing" in done.stderr
    assert "try: modprobe fuse" in done.stderr


def test_quiesce_without_a_guest_agent(writer: vm.VM, mountpoint: Path) -> None:
    message = refused(writer.name, mountpoint, "--quiesce", code=7)
    assert "cannot be frozen" in message
    assert "qemu-guest-agent" in message
    assert not writer.has_job()


def test_snapshots_that_are_not(libvirt: None, mountpoint: Path) -> None:
    for command in ("show", "delete", "rm", "detach"):
        assert "there is no snapshot" in refused(command, "nothing", code=3)
    assert "did you mean the verb" not in refused("show", "delet", code=3)
    assert "only QEMU/KVM" in refused("list", "-c", "lxc:///", code=2)
    assert f"no snapshot is mounted at {mountpoint}" in refused("umount", mountpoint, code=3)


def test_a_mountpoint_whose_name_is_no_utf_8_and_would_steer_a_terminal(writer: vm.VM, mountpoint: Path) -> None:
    odd = Path(os.fsdecode(bytes(mountpoint) + b"/\xff\xfe \x1b[31m"))
    odd.mkdir()
    taken = snapmount_json(writer.name, odd)
    assert taken["mountpoint"] == str(odd)
    said = snapmount("list").stdout + snapmount("show", odd).stdout
    assert "\x1b" not in said
    assert "\\x1b[31m" in said
    snapmount("umount", odd)


def test_a_vm_whose_name_would_steer_a_terminal(clean: None, mountpoint: Path) -> None:
    """What XML and libvirt admit of such: C1 controls, which 8-bit terminals obey, and marks that turn text round."""
    full = f"{vm.PREFIX} \x9b2J\u202e\u2066 $(reboot) {'x' * 150}"
    with vm.running(full, [vm.Disk("vda")]):
        said = [snapmount("take", "--verbose", "--", full, mountpoint)]
        shown = snapmount_json("show", mountpoint)
        assert shown["vm"]["name"] == full
        said += [snapmount("list"), snapmount("show", mountpoint)]
        said += [snapmount("boot", "--verbose", shown["id"])]
        log = Path(shown["server"]["log"]).read_text()
        said += [snapmount("delete", "--force", "--verbose", shown["id"]), snapmount(full, "/etc", check=False)]
        for text in (log, *(done.stdout + done.stderr for done in said)):
            assert all(line.isprintable() for line in text.splitlines())
        assert sum(r"\x9b2J\u202e" in done.stdout for done in said) == 5


@pytest.mark.parametrize(
    "name", ["..", "a\"b'c<d>&e", "Grüße, 世界", "-v", "$(reboot);`x`", "list", "[red]x[red]", "a" * 70], ids=repr
)
def test_names_of_vms_with_every_kind_of_character(clean: None, mountpoint: Path, name: str) -> None:
    full = f"{vm.PREFIX} {name}"
    with vm.running(full, [vm.Disk("vda")], paused=True) as odd:
        odd_mountpoint = mountpoint / f"mount {name}"
        odd_mountpoint.mkdir()
        taken = snapmount_json("take", "--", full, odd_mountpoint)
        assert taken["vm"]["name"] == full
        assert len((odd_mountpoint / "vda.raw").read_bytes()) == odd.disks[0].size
        (row,) = snapmount("list").stdout.splitlines()[1:]
        assert full in row
        assert str(odd_mountpoint) in row
        assert ElementTree.parse(odd_mountpoint / "domain.xml").findtext("name") == full
        snapmount("umount", "--", odd_mountpoint)
        assert traces.found() == []
        assert not odd.has_job()
