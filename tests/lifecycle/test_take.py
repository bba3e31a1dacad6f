"""The main job on real parts: take, list, show, delete; what the mount holds and what each command prints."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from ..rig import prefix, qcow2, traces, vm
from ..rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SEED = 7


@pytest.mark.sample
def test_a_snapshot_shows_the_disks_and_leaves_no_trace_when_deleted(writer: vm.VM, mountpoint: Path) -> None:
    said = snapmount(writer.name, mountpoint).stdout
    assert f"{writer.name}: snapshot" in said
    assert f"mounted at {mountpoint}" in said
    assert "left out: sda (CD-ROM)" in said
    disks = [f"{disk}.{kind}" for disk in ("vda", "vdb") for kind in ("map", "qcow2", "raw")]
    assert sorted(os.listdir(mountpoint)) == ["domain.xml", "snapshot.json", *disks]
    assert [(mountpoint / f"{disk.name}.raw").stat().st_size for disk in writer.disks] == [d.size for d in writer.disks]
    assert writer.has_job()

    snapmount("delete", writer.name)

    assert traces.found() == []
    assert not writer.has_job()
    assert os.listdir(mountpoint) == []


@pytest.mark.sample
def test_the_view_is_one_moment_and_the_same_bytes_on_every_later_read(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    files = [mountpoint / "vda.raw", mountpoint / "vdb.raw"]
    written_before = writer.written()
    first = [read_direct(file) for file in files]
    writes = prefix.prove(SEED, first)
    assert writes > 0
    writer.keeps_writing(3000)
    assert writer.written() > writes, "the guest went on"
    assert [read_direct(file) for file in files] == first
    assert [file.read_bytes() for file in files] == first, "through the page cache too"
    assert written_before - 5000 < writes, "the moment is that of the command, not an old one"
    snapmount("delete", writer.name)


def test_the_qcow2_files_are_of_the_same_moment_and_have_the_clusters_that_are_asked_for(
    writer: vm.VM, mountpoint: Path
) -> None:
    snapmount("--cluster-size", "4K", writer.name, mountpoint)
    images = [mountpoint / f"{disk.name}.qcow2" for disk in writer.disks]
    first = [read_direct(image) for image in images]
    writer.keeps_writing(3000)
    assert [read_direct(image) for image in images] == first
    for image in images:
        qcow2.assert_sound(image)
        qcow2.assert_equal(image, image.with_suffix(".raw"))
        assert qcow2.info(image)["cluster-size"] == 4096
    snapmount("delete", writer.name)


def test_the_verb_take_may_be_said_and_options_may_stand_first(writer: vm.VM, mountpoint: Path) -> None:
    snapmount("--connect", "qemu:///system", "take", "--disk", "vdb", writer.uuid(), mountpoint)
    assert sorted(os.listdir(mountpoint)) == ["domain.xml", "snapshot.json", "vdb.map", "vdb.qcow2", "vdb.raw"]
    snapmount("umount", mountpoint)


def test_disks_can_be_excluded(writer: vm.VM, mountpoint: Path) -> None:
    shown = snapmount_json("--exclude-disk", "vda", writer.name, mountpoint)
    assert [disk["name"] for disk in shown["disks"]] == ["vdb"]
    assert shown["left_out"] == [{"name": "vda", "why": "excluded"}, {"name": "sda", "why": "CD-ROM"}]
    assert not (mountpoint / "vda.raw").exists()
    snapmount("delete", shown["id"])


@pytest.mark.sample
def test_list_and_show_tell_all_of_a_snapshot(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    (listed,) = snapmount_json("list")
    shown = snapmount_json("show", mountpoint)
    for document in (taken, listed, shown):
        assert document["scratch"].pop("used_bytes") > 0
        assert document["scratch"].pop("free_bytes") > 0
        for changing in ("growth_bytes_per_s", "left_s"):
            del document["scratch"][changing]
    assert taken == listed == shown
    assert shown["vm"] == {"name": writer.name, "uuid": writer.uuid()}
    assert (shown["state"], shown["reason"], shown["quiesced"]) == ("active", None, False)
    assert shown["mountpoint"] == str(mountpoint)
    assert [disk["format"] for disk in shown["disks"]] == ["raw", "qcow2"]
    assert [disk["file"] for disk in shown["disks"]] == ["vda.raw", "vdb.raw"]
    assert Path(shown["server"]["log"]).stat().st_size > 0

    header, row = snapmount("list").stdout.splitlines()
    columns = ["ID", "VM", "AGE", "EXPIRES", "MOUNTPOINT", "ISCSI", "SCRATCH", "GROWTH", "SCRATCH LEFT", "PAUSED"]
    assert re.split(r"  +", header) == [*columns, "STATE"]
    assert row.split()[0] == shown["id"]
    assert row.split()[-1] == "active"
    details = snapmount("show", shown["id"]).stdout
    for fact in (shown["id"], writer.name, str(mountpoint), shown["scratch"]["directory"], shown["server"]["log"]):
        assert fact in details
    snapmount("delete", writer.name)
    assert snapmount("list").stdout == ""
    assert snapmount_json("list") == []


def test_the_mount_tells_of_itself(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    told = json.loads((mountpoint / "snapshot.json").read_text())
    assert told["id"] == taken["id"]
    assert told["disks"] == [{k: v for k, v in disk.items() if k != "nbd_uri"} for disk in taken["disks"]]
    xml = (mountpoint / "domain.xml").read_text()
    assert f"<name>{writer.name}</name>" in xml
    assert "target dev='vda'" in xml
    times = {(mountpoint / name).stat().st_mtime_ns for name in os.listdir(mountpoint)} | {
        mountpoint.stat().st_mtime_ns
    }
    assert len(times) == 1, "all are of the snapshot's moment"
    assert (mountpoint / "vda.raw").stat().st_blocks > 0, "tar -S stores nothing of a file without blocks"
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "new").touch()
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "vda.raw").open("r+b").close()
    snapmount("delete", writer.name)


def test_an_unmount_by_umount_8_ends_the_snapshot(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    subprocess.run(["umount", mountpoint], check=True)
    wait_for(lambda: traces.found() == [], "the snapshot has ended")
    assert not writer.has_job()


def test_a_reader_in_the_mount_does_not_keep_it_from_being_deleted(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    with (mountpoint / "vda.raw").open("rb", buffering=0) as held:
        snapmount("delete", writer.name)
        assert traces.found() == []
        with pytest.raises(OSError):  # noqa: PT011  # ENOTCONN or EIO, as the kernel likes
            held.read(4096)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_ends_the_snapshot(writer: vm.VM, mountpoint: Path, number: int) -> None:
    command = [SNAPMOUNT, "--foreground", writer.name, str(mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()  # said once the view can be read; a signal before that is another story
        assert f"mounted at {mountpoint}" in first
        assert (mountpoint / "snapshot.json").exists()
        while process.poll() is None:  # also while it undoes it, and to the last moment
            process.send_signal(number)
        assert "to end it: snapmount delete" in process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
    assert traces.found() == []


def test_a_signal_to_the_background_server_ends_the_snapshot(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    os.kill(taken["server"]["pid"], signal.SIGTERM)
    wait_for(lambda: traces.found() == [], "the snapshot has ended")
    assert not writer.has_job()


def test_several_snapshots_one_after_another(writer: vm.VM, mountpoint: Path) -> None:
    seen = []
    for _ in range(3):
        snapmount(writer.name, mountpoint)
        seen.append(prefix.prove(SEED, [read_direct(mountpoint / "vda.raw"), read_direct(mountpoint / "vdb.raw")]))
        snapmount("umount", mountpoint)
        writer.keeps_writing(50)
    assert seen == sorted(set(seen)), "each is later than the one before"


def test_the_server_keeps_nothing_open_of_its_caller_s(writer: vm.VM, mountpoint: Path) -> None:
    read_end, write_end = os.pipe()
    snapmount(writer.name, mountpoint, pass_fds=[write_end])
    os.close(write_end)
    with os.fdopen(read_end, "rb") as reader:
        assert reader.read() == b"", "the end of the file: nobody holds the other end"
    snapmount("delete", writer.name)


@pytest.mark.parametrize("kind", ["chain", "block"])
def test_origins_of_other_kinds_hold_a_prefix_too(clean: None, mountpoint: Path, kind: str) -> None:
    disks = [vm.Disk("vda", kind), vm.Disk("vdb", kind)]
    with vm.running(f"{vm.PREFIX}-{kind}", disks, command_line=f"snapmount.seed={SEED} snapmount.pause=1000") as guest:
        guest.keeps_writing(500)
        snapmount(guest.name, mountpoint)
        guest.keeps_writing(500)
        assert prefix.prove(SEED, [read_direct(mountpoint / f"{disk.name}.raw") for disk in disks]) > 0
        snapmount("delete", guest.name)
        assert guest.write_errors() == 0


def test_nothing_is_written_into_a_closed_pipe(writer: vm.VM, mountpoint: Path) -> None:
    script = f'{SNAPMOUNT} "$1" "$2" | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script, "-", writer.name, mountpoint], capture_output=True, text=True)
    (shown,) = snapmount_json("list")  # it was taken all the same
    there = f"nobody reads standard output; snapshot {shown['id']} of {writer.name} is there"
    assert (done.stdout.strip(), done.stderr.splitlines()[:1]) in [("0", []), ("141", [f"snapmount: {there}"])]
    snapmount("delete", writer.name)


def test_the_owner_of_the_view_is_qemu_s_user_alone(writer: vm.VM, mountpoint: Path) -> None:
    scratch = traces.SCRATCH / f"snapmount-{snapmount_json(writer.name, mountpoint)['id']}"
    qemu = Path(f"/proc/{writer.qemu_pid()}").stat().st_uid
    status = (mountpoint / "vda.raw").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (qemu, 0o400)
    as_qemu = subprocess.run(["cat", mountpoint / "vda.raw"], capture_output=True, user=qemu, extra_groups=[])
    assert as_qemu.returncode == 0
    assert len(as_qemu.stdout) == writer.disks[0].size
    journal = scratch.with_suffix(".json")
    for command, forbidden in (
        ("cat", mountpoint / "vda.raw"),
        ("ls", mountpoint),
        ("ls", traces.RUNTIME),
        ("ls", scratch),
        ("cat", journal),
    ):
        assert command == "ls" or forbidden.is_file()
        as_nobody = subprocess.run([command, forbidden], capture_output=True, user="nobody", extra_groups=[])
        assert as_nobody.returncode != 0, f"nobody may read {forbidden}"
    for path in traces.RUNTIME.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    snapmount("delete", writer.name)


def test_a_disk_with_an_iothread_costs_no_qemu_its_life(clean: None, mountpoint: Path) -> None:
    """Older ones crash as soon as an NBD client of such a disk goes away."""
    disks = [vm.Disk("vda", iothread=True), vm.Disk("vdb", "qcow2")]
    with vm.running(
        f"{vm.PREFIX}-iothread", disks, command_line=f"snapmount.seed={SEED} snapmount.pause=1000"
    ) as threaded:
        qemu = threaded.qemu_pid()
        said = subprocess.run([f"/proc/{qemu}/exe", "--version"], capture_output=True, text=True, check=True).stdout
        version = tuple(map(int, re.findall(r"version (\d+)\.(\d+)\.(\d+)", said)[0]))
        if version < (8, 2, 3):
            message = refused(threaded.name, mountpoint, code=4)
            assert f"vda uses an iothread, and the VM's QEMU {'.'.join(map(str, version))} would crash" in message
            assert f"snapmount boot {threaded.name} --exclude-disk vda" in refused("boot", threaded.name, code=4)
            booted = snapmount_json("boot", threaded.name, "--exclude-disk", "vda", "--wait-for", "guest is up")
            assert {"name": "vda", "why": "not part of the snapshot"} in booted["left_out"]
            snapmount("delete", "--force", threaded.name)
            snapmount(threaded.name, mountpoint, "--exclude-disk", "vda")
            assert read_direct(mountpoint / "vdb.raw")
        else:
            snapmount(threaded.name, mountpoint)
            assert prefix.prove(SEED, [read_direct(mountpoint / f"{disk.name}.raw") for disk in disks]) > 0
        snapmount("delete", threaded.name)
        threaded.keeps_writing()
        assert (threaded.qemu_pid(), threaded.write_errors()) == (qemu, 0)
