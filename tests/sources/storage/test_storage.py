"""Snapshots by storage, of a VM whose disks lie on file systems that can clone them: one moment of all disks, which
outlives the VM; the guest is paused for no longer than was promised, and never left so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.core.limits import FLOOR_BYTES

from ...rig import clones, dying, filesystems, prefix, servers, traces, vm
from ...rig.command import assert_reads_fail, read_direct, refused, snapmount, snapmount_json, state_of
from ...rig.libvirtd import wait_for
from ...rig.prefix import Piece, Replay

pytestmark = pytest.mark.vm
SEED = 7
WRITES = f"snapmount.seed={SEED} snapmount.pause=1000"
SIZE = 16 << 20
LEAVE = FLOOR_BYTES + (16 << 20)
FLAT_OUT = {"vdy": "xfs", "vdz": "btrfs"}
HOOK = """#!/bin/sh
json() { sed -n "s/.*\\"$1\\": *\\"\\([^\\"]*\\)\\".*/\\1/p" "$0.asked"; }
cat > "$0.asked"
frozen=$(json origin).$(json name)
case $1 in
    plan) echo '{"pause_s": 0.01, "remedy": "another filer"}' ;;
    take) TAKE || exit 1; cp --reflink=always "$(json origin)" "$frozen"; echo '{}' ;;
    status) echo "{\\"frozen\\": \\"$frozen\\"}" ;;
    delete) rm -f "$frozen"; echo '{}' ;;
esac
"""
STORAGE = ("--source", "storage", "--max-pause", "20")  # a busy host without KVM takes its time


@pytest.fixture(scope="module")
def places(libvirt: None) -> Iterator[dict[str, Path]]:
    """Directories on XFS and btrfs."""
    with filesystems.mounted(400, "xfs") as xfs, filesystems.mounted(400, "btrfs") as btrfs:
        yield {"xfs": xfs, "btrfs": btrfs}


@pytest.fixture(scope="module")
def shared(places: dict[str, Path]) -> Iterator[vm.VM]:
    """A VM that writes all the time to disks of both formats on both file systems."""
    kinds = {"vda": ("raw", "xfs"), "vdb": ("chain", "xfs"), "vdc": ("raw", "btrfs"), "vdd": ("qcow2", "btrfs")}
    disks = [vm.Disk(name, kind, SIZE, place=places[place]) for name, (kind, place) in kinds.items()]
    with vm.running(f"{vm.PREFIX}-stored", disks, command_line=WRITES) as running:
        yield running


@pytest.fixture
def stored(shared: vm.VM, places: dict[str, Path], clean: None) -> Iterator[vm.VM]:
    """That VM: whatever the test did, the guest has had no error and goes on writing, and no clone is left."""
    yield shared
    shared.keeps_writing()
    assert shared.write_errors() == 0
    assert left(places) == []


def left(places: dict[str, Path]) -> list[str]:
    """The clones that there are."""
    return [path for place in places.values() for path in clones.places(place)]


def read_view(mountpoint: Path) -> list[bytes]:
    return [read_direct(mountpoint / f"{name}.raw") for name in ("vda", "vdb", "vdc", "vdd")]


def hook(directory: Path, take: str) -> Path:
    """One that copies the image as snapmount itself would, after this."""
    path = directory / "hook"
    path.write_text(HOOK.replace("TAKE", take))
    path.chmod(0o755)
    return path


def test_all_disks_on_both_file_systems_are_of_one_moment_and_stay_so(stored: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(*STORAGE, stored.name, mountpoint)
    assert taken["source"] == "storage"
    assert 0 < taken["pause_s"] < 20
    first = read_view(mountpoint)
    writes = prefix.prove(SEED, first)
    stored.keeps_writing(500)
    assert stored.written() > writes, "the guest went on"
    assert read_view(mountpoint) == first
    assert not stored.has_job()
    (listed,) = snapmount_json("list")
    assert listed["pause_s"] == taken["pause_s"]
    assert "the VM was paused for" in snapmount("show", stored.name).stdout

    servers.kill(taken)
    snapmount("recover", taken["id"])
    assert read_view(mountpoint) == first
    snapmount("delete", stored.name)
    assert traces.found() == []


def test_the_increments_of_a_guest_that_writes_make_of_each_view_the_next_one(
    stored: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    """The tables of qcow2 images too are of the moment: QEMU writes them out when the VM is suspended."""
    before: list[bytes] = []
    for _ in range(3):
        taken = snapmount_json(*STORAGE, stored.name, mountpoint, "--checkpoint", "--since=last")
        assert {disk["full"] for disk in taken["disks"]} == {None if before else "there is no checkpoint yet"}
        now = read_view(mountpoint)
        for number, older in enumerate(before):
            name = taken["disks"][number]["name"]
            dirty = json.loads((mountpoint / f"{name}.dirty").read_text())
            restored = bytearray(older)
            for each in dirty:
                start, end = each["start"], each["start"] + each["length"]
                restored[start:end] = bytes(end - start) if each["zero"] else now[number][start:end]
            assert restored == now[number], name
            assert sum(each["length"] for each in dirty) < SIZE, "not all of it"
        before = now
        snapmount("delete", stored.name)
        stored.keeps_writing(50)
    snapmount("checkpoints", stored.name, "--keep", "0")
    assert left(places) == []


def test_a_file_that_has_come_to_the_place_of_a_disk_is_not_taken_for_it(
    stored: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    """As after a mv and a cp: QEMU goes on writing to the one that was moved."""
    image = places["xfs"] / "vda.img"
    aside = image.with_name("aside")
    image.rename(aside)
    try:
        shutil.copyfile(aside, image)
        message = refused(*STORAGE, stored.name, mountpoint, code=4)
    finally:
        aside.rename(image)
    assert f"{image} is not what its QEMU has open" in message
    assert left(places) == []


def test_a_single_raw_image_is_taken_without_a_pause(stored: vm.VM, mountpoint: Path) -> None:
    no_pause = ("--source", "storage", "--max-pause", "0")
    assert "has to be paused for a moment" in refused(*no_pause, stored.name, mountpoint, code=4)
    for number, disk in ((0, "vda"), (2, "vdc")):
        taken = snapmount_json(*no_pause, "--disk", disk, stored.name, mountpoint)
        assert taken["pause_s"] == 0
        assert "storage: the VM was not paused" in snapmount("show", stored.name).stdout
        assert Replay(SEED, [SIZE] * 4).prove([Piece(number, 0, read_direct(mountpoint / f"{disk}.raw"))]) > 0
        snapmount("delete", stored.name)


def test_a_pause_that_would_be_too_long_is_refused_with_the_disk_that_makes_it_so(
    stored: vm.VM, mountpoint: Path, tmp_path: Path
) -> None:
    slow = hook(tmp_path, "true")
    slow.write_text(slow.read_text().replace('"pause_s": 0.01', '"pause_s": 7'))
    said = refused("--storage", f"vdc={slow}", stored.name, mountpoint, code=4)
    assert f"{stored.name} would be paused for about 7" in said
    assert "most of it for vdc (hook), and --max-pause allows 1 s" in said
    assert "another filer" in said, "what the hook says would serve better"


@pytest.mark.parametrize(
    ("call", "also"),
    [
        ("snapmount.sources.storage.clones:prepare", dying.COMMAND),
        ("snapmount.hypervisor.pause:_suspend", dying.COMMAND),
        ("snapmount.sources.storage.clones:create", dying.COMMAND),
        ("snapmount.sources.storage.clones:create", dying.STANDBY),
        ("snapmount.hypervisor.pause:_resume", dying.COMMAND),
    ],
)
def test_wherever_the_server_is_killed_the_guest_goes_on_and_nothing_is_left(
    stored: vm.VM, places: dict[str, Path], mountpoint: Path, call: str, also: str
) -> None:
    code, _ = dying.run(call, also, *STORAGE, stored.name, mountpoint)
    assert code == (1 if also == dying.STANDBY else -signal.SIGKILL)
    wait_for(lambda: stored.state() == "running", "it goes on")
    wait_for(lambda: traces.found() == [], "all is undone")
    assert left(places) == []


@pytest.mark.parametrize("call", ["snapmount.hypervisor.pause:_suspend", "snapmount.sources.storage.clones:create"])
def test_one_that_is_taken_in_the_foreground_lets_the_guest_go_on_too(
    stored: vm.VM, places: dict[str, Path], mountpoint: Path, call: str
) -> None:
    code, _ = dying.run(call, dying.NOBODY, "--foreground", *STORAGE, stored.name, mountpoint)
    assert code == -signal.SIGKILL
    wait_for(lambda: stored.state() == "running", "it goes on")
    wait_for(lambda: traces.found() == [], "all is undone")
    assert left(places) == []


@pytest.mark.parametrize(
    ("take", "told"),
    [
        ("sleep 6", "were not made within the 2 s that --max-pause allows"),
        ("exit 1", "take has failed (exit status 1)"),
    ],
    ids=["slow", "failing"],
)
def test_clones_that_fail_or_are_late_are_undone_and_the_guest_goes_on(
    stored: vm.VM, mountpoint: Path, tmp_path: Path, take: str, told: str
) -> None:
    named = ("--storage", f"vdc={hook(tmp_path, take)}", "--max-pause", "2")
    said = refused(*named, stored.name, mountpoint, code=4)
    assert told in said
    assert stored.state() == "running"
    assert traces.found() == []


def test_a_hook_takes_its_disk_at_the_same_moment_or_gives_a_url_in_its_place(
    stored: vm.VM, mountpoint: Path, tmp_path: Path
) -> None:
    named = (*STORAGE, "--storage", f"vdc={hook(tmp_path, 'true')}")
    snapmount(*named, stored.name, mountpoint)
    prefix.prove(SEED, read_view(mountpoint))
    snapmount("delete", stored.name)

    url = "https://filer.example/snapshots/7"
    giving = hook(tmp_path, "true")
    giving.write_text(giving.read_text().replace('\\"$frozen\\"', f'\\"{url}\\"'))
    taken = snapmount_json(*named, stored.name, mountpoint)
    assert [disk["name"] for disk in taken["disks"]] == ["vda", "vdb", "vdd"]
    assert taken["urls"] == [{"name": "vdc", "url": url, "file": "vdc.url"}]
    assert (mountpoint / "vdc.url").read_text() == f"{url}\n"
    assert not (mountpoint / "vdc.raw").exists()
    assert url in snapmount("show", stored.name).stdout
    servers.kill(taken)
    snapmount("recover", taken["id"])
    assert (mountpoint / "vdc.url").read_text() == f"{url}\n"
    snapmount("delete", stored.name)


def test_a_file_system_without_space_for_what_the_guest_writes_is_refused(
    stored: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    with stored.suspended(), filesystems.filled(places["xfs"], leave=SIZE // 4):
        said = refused(*STORAGE, "--disk", "vda", stored.name, mountpoint, code=5)
    assert f"{places['xfs']} has" in said
    assert "free for what the guest writes while the snapshot lives; at least 16 MiB must be free" in said


def test_a_disk_on_which_a_block_job_runs_is_refused(stored: vm.VM, mountpoint: Path) -> None:
    copy = stored.directory / "copy"
    stored.virsh("blockcopy", stored.name, "vda", str(copy), "--bandwidth", "1", "--transient-job")
    try:
        said = refused(*STORAGE, stored.name, mountpoint, code=4)
    finally:
        stored.virsh("blockjob", stored.name, "vda", "--abort")
        copy.unlink()
    assert "a block job (copy) runs on vda, and it goes on while the VM is paused" in said


def test_clones_that_no_record_tells_of_any_more_are_removed(
    stored: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    taken = snapmount_json(*STORAGE, stored.name, mountpoint)
    assert left(places) != []
    servers.restart_host(taken, mountpoint)
    for records in traces.SCRATCH.glob("records-*"):
        shutil.rmtree(records)
    snapmount("recover")
    assert left(places) == []
    assert traces.found() == []


def test_a_shutdown_of_the_host_does_not_end_it(stored: vm.VM, mountpoint: Path, tmp_path: Path) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho stopping\nexit 1\n")
    systemctl.chmod(0o755)
    told_so = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    taken = snapmount_json(*STORAGE, stored.name, mountpoint, env=told_so)
    first = read_view(mountpoint)
    (daemon,) = traces.storage_daemons()
    os.kill(daemon, signal.SIGTERM)  # as all processes get it, in any order
    log = Path(taken["server"]["log"])
    wait_for(lambda: "exit status 0: the host is shut down" in log.read_text(), "that is no loss")
    os.kill(taken["server"]["pid"], signal.SIGTERM)
    wait_for(lambda: state_of(stored.name)[0] == "dead", "it is left")
    wait_for(lambda: not os.path.ismount(mountpoint), "its view is not")
    snapmount("recover")
    assert read_view(mountpoint) == first
    os.kill(servers.listed(taken["id"])["server"]["pid"], signal.SIGTERM)
    wait_for(lambda: traces.found() == [], "without that SIGTERM ends it, as ever")


def test_its_disks_can_be_attached_to_another_vm(stored: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    snapmount(*STORAGE, "--disk", "vda", "--disk", "vdd", stored.name, mountpoint)
    snapmount("attach", stored.name, helper.name)
    assert len(helper.targets()) == 3
    snapmount("detach", stored.name)
    snapmount("delete", stored.name)


def test_a_vm_that_is_paused_stays_so(stored: vm.VM, mountpoint: Path) -> None:
    with stored.suspended():
        taken = snapmount_json(*STORAGE, stored.name, mountpoint)
        assert stored.state() == "paused"
        prefix.prove(SEED, read_view(mountpoint))
        assert taken["pause_s"] == 0, "not by us"
        snapmount("delete", stored.name)
        assert stored.state() == "paused"


def allocated(path: Path) -> None:
    """What the guest writes to the image needs no new space but for a clone's sake."""
    with path.open("r+b") as f:
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)


def test_it_is_given_up_before_a_guest_that_writes_flat_out_finds_no_space(
    places: dict[str, Path], mountpoint: Path, clean: None
) -> None:
    is_served = {"vdy": True, "vdz": False}
    disks = [vm.Disk(name, "raw", 4 * SIZE, fill=allocated, place=places[place]) for name, place in FLAT_OUT.items()]
    with vm.running(f"{vm.PREFIX}-flat-out", disks, command_line=f"snapmount.seed={SEED}") as guest:
        for disk, place in FLAT_OUT.items():
            taken = snapmount_json(*STORAGE, "--disk", disk, guest.name, mountpoint)
            if not is_served[disk]:
                servers.kill(taken)  # its standby watches too
            with filesystems.filled(places[place], leave=LEAVE):
                wait_for(lambda: left(places) == [], "the clone is gone", 60)
                guest.keeps_writing(500)
            wait_for(lambda: "about to find no space" in str(state_of(guest.name)[1]), "list tells why")
            if is_served[disk]:
                assert state_of(guest.name)[0] == "gave up"
                assert_reads_fail(mountpoint / f"{disk}.raw")
            snapmount("delete", guest.name)
        assert guest.write_errors() == 0
    for disk, place in FLAT_OUT.items():
        (places[place] / f"{disk}.img").unlink()


def test_it_outlives_the_vm_and_a_restart_of_the_host(stored: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(*STORAGE, stored.name, mountpoint)
    first = read_view(mountpoint)
    os.kill(stored.qemu_pid(), signal.SIGKILL)
    wait_for(lambda: stored.state() == "shut off", "QEMU has gone")
    servers.restart_host(taken, mountpoint)
    assert "re-attached to snapshot" in snapmount("recover").stdout
    assert read_view(mountpoint) == first
    prefix.prove(SEED, first)
    assert state_of(stored.name) == ("active", None)
    snapmount("delete", stored.name)

    shut_off = snapmount_json(*STORAGE, stored.name, mountpoint)
    assert shut_off["source"] == "storage"
    first = read_view(mountpoint)
    stored.start()
    stored.keeps_writing()
    assert read_view(mountpoint) == first
    snapmount("delete", stored.name)
    assert traces.found() == []


def test_a_guest_is_frozen_around_the_pause_and_goes_on_also_if_the_server_is_killed_in_it(
    places: dict[str, Path], mountpoint: Path, clean: None
) -> None:
    directory = places["xfs"] / "frozen"
    directory.mkdir(mode=0o755)
    disk = vm.Disk("vda", "raw", 2 * SIZE, ext4=True, place=directory)
    with vm.running(f"{vm.PREFIX}-frozen", [disk], agent=True, command_line="snapmount.ext4=vda") as guest:
        guest.agent_answers()
        taken = snapmount_json(*STORAGE, "--quiesce", guest.name, mountpoint)
        assert taken["quiesced"] is True
        shown = subprocess.run(["dumpe2fs", "-h", mountpoint / "vda.raw"], capture_output=True, text=True, check=True)
        assert "needs_recovery" not in shown.stdout
        snapmount("delete", guest.name)

        create = "snapmount.sources.storage.clones:create"
        dying.run(create, dying.COMMAND, *STORAGE, "--quiesce", guest.name, mountpoint)
        lines = guest.output().count("lines=")
        wait_for(lambda: guest.output().count("lines=") > lines, "it goes on, and has been thawed")
        wait_for(lambda: traces.found() == [], "all is undone")
    shutil.rmtree(directory)
