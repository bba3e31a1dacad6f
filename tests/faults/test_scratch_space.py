"""The scratch space comes to an end, and it is the snapshot that is given up, never the guest: on real file systems."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapmount.host import usage
from snapmount.sources.pull.scratch import places
from snapmount.sources.pull.scratch.places import FileSystem

from ..rig import filesystems, libvirtd, prefix, servers, traces, vm
from ..rig.command import assert_reads_fail, read_direct, refused, snapmount, snapmount_json, state_of
from ..rig.filesystems import filled, free_bytes
from ..rig.libvirtd import wait_for
from ..rig.listing import assert_lists_what_cannot_be_read
from ..rig.signals import stopped

pytestmark = pytest.mark.vm

SEED = 7
MIB = 1 << 20
SIZES = {"vda": 80 * MIB, "vdb": 16 * MIB}  # their worst case is 97 MiB
ROOM = 72 * MIB  # enough to begin with, and less than the worst case
CAP_SYS_RESOURCE = 24  # linux/capability.h
BRIM = 1 * MIB  # with less, a file system is full


@pytest.fixture(scope="module")
def small(libvirt: None) -> Iterator[Path]:
    """A file system of 160 MiB."""
    with filesystems.mounted(160) as directory:
        yield directory


@pytest.fixture(scope="module")
def old(libvirt: None) -> Iterator[Path]:
    """A file system that cannot reserve space for files."""
    with filesystems.mounted(160, "ext2") as directory:
        yield directory


@pytest.fixture(scope="module")
def memory(libvirt: None) -> Iterator[Path]:
    with filesystems.mounted(160, "tmpfs") as directory:
        yield directory


@pytest.fixture(scope="module")
def module_vm(small: Path, old: Path, memory: Path) -> Iterator[vm.VM]:
    """A VM that was started when the file systems were there, and writes all the time."""
    disks = [vm.Disk("vda", "raw", SIZES["vda"]), vm.Disk("vdb", "qcow2", SIZES["vdb"])]
    with vm.running(f"{vm.PREFIX}-space", disks, command_line=f"snapmount.seed={SEED}") as running:
        running.keeps_writing(8000)  # each of the 1536 clusters: overwritten holes would take no scratch space
        yield running


@pytest.fixture
def guest(module_vm: vm.VM, clean: None) -> Iterator[vm.VM]:
    """That VM; whatever the test did, its guest has had no error and goes on writing."""
    yield module_vm
    module_vm.keeps_writing(100)
    assert module_vm.write_errors() == 0


@pytest.fixture
def loop(libvirt: None, tmp_path: Path) -> Iterator[Path]:
    """An empty block device of 66 MiB: enough for vdb, and not for all of vda."""
    image = tmp_path / "device"
    with image.open("wb") as f:
        f.truncate(66 * MIB)
    with contextlib.ExitStack() as stack:
        yield vm.loop_device(image, stack)


def wait_given_up(name: str) -> str:
    """Wait until the snapshot was given up and its remains are gone; the reason."""
    shown = snapmount_json("show", name)
    wait_for(lambda: snapmount_json("show", name)["state"] == "gave up", "the snapshot is given up")
    wait_for(lambda: not Path(shown["scratch"]["directory"]).exists(), "the scratch files are gone")
    return str(snapmount_json("show", name)["reason"])


# -- the limit ---------------------------------------------------------------------------------------------------------


@pytest.mark.sample
@pytest.mark.skipif(not Path("/usr/sbin/tgtd").exists(), reason="this host lacks tgtd: run contrib/setup --test")
def test_at_its_limit_the_snapshot_is_given_up_and_only_the_snapshot(guest: vm.VM, mountpoint: Path) -> None:
    with guest.throttled(40):  # 5 MiB/s of scratch space: a busy host looks in time too
        with guest.suspended():  # however slow this host is, it does not fill the scratch before the test looks
            snapmount("--iscsi", "--target", "tgt", "--scratch-limit", "24M", guest.name, mountpoint)
            (mountpoint / "vda.raw").read_bytes()  # the kernel's page cache holds all of it now
        reason = wait_given_up(guest.name)
    figures = re.fullmatch(
        r"scratch limit reached \(([\d.]+) MiB of 24 MiB at [\d-]{10} \d\d:\d\d:\d\d UTC, growing [\d.]+ [KM]iB/s\)",
        reason,
    )
    assert figures, reason
    assert 24 <= float(figures[1]) < 48
    assert f"gave up: {reason}" in snapmount("list").stdout
    wait_for(lambda: not guest.has_job(), "the job is ended")  # just after the reads, which end first
    assert_reads_fail(mountpoint / "vda.raw")
    assert_reads_fail(mountpoint / "vdb.raw")
    assert (mountpoint / "domain.xml").read_text().startswith("<domain"), "what is known still can be read"
    wait_for(lambda: snapmount_json("show", guest.name)["iscsi"] is None, "the LUNs are withdrawn")
    assert not [trace for trace in traces.found() if trace.startswith("tgtd")]

    snapmount("delete", guest.name)
    assert traces.found() == []


def test_a_limit_that_nothing_fits_into_is_an_error(guest: vm.VM, mountpoint: Path) -> None:
    message = refused("--scratch-limit", "256K", guest.name, mountpoint, code=5)
    assert "given up before it was readable: scratch limit reached" in message
    assert traces.found() == []
    assert not guest.has_job()


def test_the_limit_holds_while_libvirtd_is_down(guest: vm.VM, mountpoint: Path) -> None:
    with guest.suspended():
        snapmount("--scratch-limit", "16M", guest.name, mountpoint)
    with libvirtd.stopped():
        wait_for(lambda: snapmount_json("show", guest.name)["state"] == "gave up", "it is given up without libvirtd")
        assert_reads_fail(mountpoint / "vda.raw")
        assert_lists_what_cannot_be_read(mountpoint, "vdb", guest.disks[1].size)
    wait_for(lambda: not guest.has_job(), "the job is ended as soon as libvirtd is back")
    wait_given_up(guest.name)
    snapmount("delete", guest.name)


def test_the_limit_holds_where_somebody_has_deleted_the_scratch_files(guest: vm.VM, mountpoint: Path) -> None:
    """QEMU writes to them all the same; a server that has come after that must ask libvirt."""
    with guest.suspended():
        taken = snapmount_json("--scratch-limit", "16M", guest.name, mountpoint)
        kill_server_and_standby(taken)
        for file in Path(taken["scratch"]["directory"]).iterdir():
            file.unlink()
        assert "re-attached" in snapmount("recover").stdout
    assert "scratch limit reached" in wait_given_up(guest.name)
    snapmount("delete", guest.name)


def listening(log: Path) -> int:
    """How often the server has begun to listen to libvirt's events."""
    return log.read_text().count("listening to libvirt's events")


def test_events_come_again_after_a_restart_of_libvirtd(guest: vm.VM, mountpoint: Path) -> None:
    with guest.suspended():
        log = Path(snapmount_json("--scratch-limit", "16M", guest.name, mountpoint)["server"]["log"])
        wait_for(lambda: listening(log) == 1, "the server listens")
        with libvirtd.stopped():
            pass
        wait_for(lambda: listening(log) == 2, "the server listens again")
    wait_given_up(guest.name)
    assert "has grown to its threshold" in log.read_text()
    snapmount("delete", guest.name)


def test_list_and_show_tell_how_fast_the_scratch_space_goes(guest: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json("--scratch-limit", "1G", guest.name, mountpoint)
    assert taken["scratch"]["limit_bytes"] == 1024 * MIB
    assert "room for the worst case" in taken["scratch"]["place"]
    wait_for(lambda: snapmount_json("show", guest.name)["scratch"]["growth_bytes_per_s"], "it is seen to grow")
    scratch = snapmount_json("show", guest.name)["scratch"]
    assert scratch["used_bytes"] > 0
    assert scratch["left_s"] > 0
    assert re.search(r" [\d.]+ [KM]iB/s +\d+[smh]", snapmount("list").stdout)
    assert re.search(r"of at most 1 GiB, .* free, growing .*iB/s, .* left", snapmount("show", guest.name).stdout)

    servers.kill(taken)
    scratch = snapmount_json("list")[0]["scratch"]
    assert (scratch["growth_bytes_per_s"], scratch["left_s"]) == (None, None), "nobody measures any more"
    snapmount("delete", guest.name)


# -- a file system that fills up ---------------------------------------------------------------------------------------


def test_a_guest_that_fills_the_scratch_at_full_speed_never_sees_an_error(
    guest: vm.VM, mountpoint: Path, small: Path
) -> None:
    with filled(small, leave=ROOM):
        with guest.suspended():
            snapmount("--scratch-dir", small, guest.name, mountpoint)
        reason = wait_given_up(guest.name)
        assert re.match(rf"scratch space ran out \([\d.]+ \w+ left on {small}, [\d.]+ \w+ used at ", reason)
        assert guest.state() == "running"
        assert_reads_fail(mountpoint / "vda.raw")
        snapmount("delete", guest.name)


def test_a_guest_that_a_full_scratch_has_paused_is_freed_at_once(guest: vm.VM, mountpoint: Path, small: Path) -> None:
    """The server cannot act in time: it is stopped itself."""
    with filled(small, leave=ROOM):
        with guest.suspended():
            taken = snapmount_json("--scratch-dir", small, guest.name, mountpoint)
            server = contextlib.ExitStack()
            server.enter_context(stopped(taken["server"]["pid"]))
        with filled(small, leave=0):
            with server:
                wait_for(lambda: guest.state() == "paused", "the guest is paused")
            wait_for(lambda: guest.state() == "running", "the guest is freed")
            assert "scratch space ran out" in wait_given_up(guest.name)
        snapmount("delete", guest.name)


def test_when_the_server_was_killed_its_standby_gives_the_snapshot_up(
    guest: vm.VM, mountpoint: Path, small: Path
) -> None:
    with filled(small, leave=ROOM):
        with guest.suspended():
            taken = snapmount_json("--scratch-dir", small, guest.name, mountpoint)
            os.kill(taken["server"]["pid"], signal.SIGKILL)
        wait_for(lambda: not Path(taken["scratch"]["directory"]).exists(), "the scratch files are gone")
        assert not guest.has_job()
        wait_for(lambda: guest.state() == "running", "the guest goes on, if it was paused at all")
        state, reason = state_of(guest.name)
        assert state == "dead"
        assert re.match(rf"scratch space ran out \([\d.]+ \w+ left on {small}, ", reason or "")
        assert f"its server process is gone; {reason}" in snapmount("list").stdout
        assert f"has been removed: {reason}" in snapmount("recover", guest.name).stdout
        assert traces.found() == []


def test_a_standby_lets_be_what_cannot_run_out_and_ends_with_its_snapshot(guest: vm.VM, mountpoint: Path) -> None:
    first = snapmount_json(guest.name, mountpoint)["server"]
    for pid in (first["pid"], first["standby_pid"]):
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == least_oom_score_adj()
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(lambda: "the server, has gone" in Path(first["log"]).read_text(), "the standby watches")
    snapmount("recover", guest.name)
    second = snapmount_json("show", guest.name)["server"]
    assert {first["pid"], first["standby_pid"]}.isdisjoint({second["pid"], second["standby_pid"]})
    wait_for(lambda: not Path("/proc", str(first["standby_pid"])).exists(), "the new server has a standby of its own")
    assert snapmount_json("show", guest.name)["state"] == "active"
    snapmount("delete", guest.name)
    assert not Path("/proc", str(second["standby_pid"])).exists()


def test_when_the_server_was_killed_its_standby_ends_the_snapshot_when_it_expires(
    guest: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json("--expire", "5s", guest.name, mountpoint)
    os.kill(taken["server"]["pid"], signal.SIGKILL)
    wait_for(lambda: traces.found() == [], "it has ended")
    assert not guest.has_job()


def least_oom_score_adj() -> int:
    """What root gives the server, so that others go first when memory runs out; a container's root may not."""
    (capabilities,) = re.findall(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    may_lower = int(capabilities, 16) & 1 << CAP_SYS_RESOURCE
    return -900 if may_lower else int(Path("/proc/self/oom_score_adj").read_text())


def kill_server_and_standby(taken: dict[str, Any]) -> None:
    """Nobody watches the snapshot any more."""
    for pid in (taken["server"]["standby_pid"], taken["server"]["pid"]):
        os.kill(pid, signal.SIGKILL)


def test_delete_frees_a_guest_whose_snapshot_nobody_watches_any_more(
    guest: vm.VM, mountpoint: Path, small: Path
) -> None:
    with filled(small, leave=ROOM):
        with guest.suspended():
            kill_server_and_standby(snapmount_json("--scratch-dir", small, guest.name, mountpoint))
        with filled(small, leave=0):
            wait_for(lambda: guest.state() == "paused", "the guest is paused")
            snapmount("delete", guest.name)
            assert guest.state() == "running"


def test_recover_frees_a_guest_where_there_is_space_again(guest: vm.VM, mountpoint: Path, small: Path) -> None:
    with filled(small, leave=ROOM):
        with guest.suspended():
            kill_server_and_standby(snapmount_json("--scratch-dir", small, guest.name, mountpoint))
        with filled(small, leave=0):
            wait_for(lambda: guest.state() == "paused", "the guest is paused")
    snapmount("recover", guest.name)
    wait_for(lambda: guest.state() == "running", "the guest goes on")
    assert prefix.prove(SEED, [read_direct(mountpoint / f"{disk}.raw") for disk in SIZES]) > 0, "it lives on"
    snapmount("delete", guest.name)


def test_recover_removes_a_snapshot_that_has_grown_beyond_its_limit_meanwhile(guest: vm.VM, mountpoint: Path) -> None:
    with guest.suspended():
        taken = snapmount_json("--scratch-limit", "8M", guest.name, mountpoint)
        kill_server_and_standby(taken)
    scratch = Path(taken["scratch"]["directory"])
    wait_for(lambda: usage.used_bytes(scratch) > 8 * MIB, "the limit is passed")
    assert "given up before it was readable: scratch limit reached" in snapmount("recover").stdout
    assert not guest.has_job()
    assert traces.found() == []


def test_a_guest_whose_own_disk_lacks_space_stops_again_and_keeps_its_snapshot(
    clean: None, mountpoint: Path, small: Path
) -> None:
    image = vm.make_image(small, vm.Disk("vdb", "raw", SIZES["vdb"]))
    disk = f"<disk type='file'><source file='{image}'/><target dev='vdb' bus='virtio'/></disk>"
    command_line = f"snapmount.seed={SEED}"
    name = f"{vm.PREFIX}-own-space"
    with vm.running(name, [vm.Disk("vda")], command_line=command_line, extra_devices=disk) as own:
        with filled(small, leave=0):
            wait_for(lambda: own.state() == "paused", "the guest is paused")
            taken = snapmount_json("--scratch-dir", own.directory, own.name, mountpoint)
            log = Path(taken["server"]["log"])
            wait_for(lambda: "a write found no space: it goes on" in log.read_text(), "the guest is let go on")
            wait_for(lambda: own.state() == "paused", "the guest is paused again")
            assert snapmount_json("show", own.name)["state"] == "active"
        own.virsh("resume", own.name, check=False)  # it may be running, if it was not paused again that soon
        own.keeps_writing(100)
        assert own.write_errors() == 0
        snapmount("delete", own.name)
    image.unlink()


def test_a_guest_that_was_paused_while_libvirtd_was_down_is_freed_when_it_is_back(
    guest: vm.VM, mountpoint: Path, small: Path
) -> None:
    snapmount("--scratch-dir", small, guest.name, mountpoint)
    with contextlib.ExitStack() as full:
        with libvirtd.stopped():
            full.enter_context(filled(small, leave=0))
            wait_for(lambda: _stands_still(guest), "the guest is paused")
        wait_for(lambda: guest.state() == "running", "the guest is freed")
        wait_given_up(guest.name)
        snapmount("delete", guest.name)


def _stands_still(guest: vm.VM) -> bool:
    """Whether the guest tells of no write for longer than it does otherwise."""
    before = guest.output()
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: guest.output() != before, "the guest writes", 3)
    return guest.output() == before


def test_a_guest_that_an_administrator_has_paused_stays_so(guest: vm.VM, mountpoint: Path, small: Path) -> None:
    with guest.suspended(), filled(small, leave=ROOM):
        snapmount("--scratch-dir", small, guest.name, mountpoint)
        with filled(small, leave=0):
            wait_given_up(guest.name)
        assert guest.virsh("domstate", "--reason", guest.name).strip() == "paused (user)"
        snapmount("delete", guest.name)


def test_reserved_scratch_cannot_run_out(guest: vm.VM, mountpoint: Path, small: Path) -> None:
    snapmount("--scratch-reserve", "--scratch-dir", small, guest.name, mountpoint)
    with filled(small, leave=0):
        assert free_bytes(small) < BRIM
        goal = sum(SIZES.values()) // 2
        wait_for(lambda: snapmount_json("show", guest.name)["scratch"]["used_bytes"] > goal, "half is overwritten")
        assert prefix.prove(SEED, [read_direct(mountpoint / f"{disk}.raw") for disk in SIZES]) > 0
        shown = snapmount_json("show", guest.name)
        assert (shown["state"], shown["scratch"]["reserved"]) == ("active", True)
        assert guest.state() == "running"
        snapmount("delete", guest.name)
    assert os.listdir(small) == ["lost+found"]


def test_a_place_that_cannot_reserve_says_so(guest: vm.VM, mountpoint: Path, old: Path, small: Path) -> None:
    message = refused("--scratch-reserve", "--scratch-dir", old, guest.name, mountpoint, code=5)
    assert "cannot be reserved" in message
    assert "keep size mode is unsupported" in message
    assert "ext4, XFS or btrfs" in message
    with filled(small, leave=ROOM):
        message = refused("--scratch-reserve", "--scratch-dir", small, guest.name, mountpoint, code=5)
    assert "--scratch-reserve takes 96." in message
    assert traces.found() == []


def test_scratch_in_memory_must_be_asked_for_and_is_warned_of(guest: vm.VM, mountpoint: Path, memory: Path) -> None:
    done = snapmount("--scratch-dir", memory, guest.name, mountpoint)
    assert f"warning: {memory} is in memory (tmpfs)" in done.stderr
    snapmount("delete", guest.name)


def test_scratch_goes_beside_the_images_where_that_is_faster(
    clean: None, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filesystems.mounted(300) as fast:
        number = fast.stat().st_dev
        Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/rotational").write_text("0")
        if places.is_rotational(FileSystem("ext4", "", vm.IMAGES.stat().st_dev)) is False:
            pytest.skip("this host's default place is fast already")
        monkeypatch.setattr(vm, "IMAGES", fast)
        with vm.running(f"{vm.PREFIX}-fast", [vm.Disk("vda")], command_line=f"snapmount.seed={SEED}") as guest:
            taken = snapmount_json(guest.name, mountpoint)
            assert Path(taken["scratch"]["directory"]).parent == guest.directory
            place = "beside the VM's images, ext4 on a disk that does not rotate, room for the worst case"
            assert taken["scratch"]["place"] == place
            assert place in snapmount("show", guest.name).stdout
            assert prefix.prove(SEED, [read_direct(mountpoint / "vda.raw")]) > 0
            snapmount("delete", guest.name)
            assert not list(guest.directory.glob("snapmount-*"))


# -- block devices -----------------------------------------------------------------------------------------------------


def test_a_block_device_can_be_scratch_and_is_empty_afterwards(guest: vm.VM, mountpoint: Path, loop: Path) -> None:
    taken = snapmount_json("--scratch-device", f"vdb={loop}", guest.name, mountpoint)
    assert taken["scratch"]["devices"] == {"vdb": str(loop)}
    assert os.listdir(taken["scratch"]["directory"]) == ["vda.qcow2"]
    wait_for(lambda: snapmount_json("show", guest.name)["scratch"]["used_bytes"] > 32 * MIB, "both are overwritten")
    assert prefix.prove(SEED, [read_direct(mountpoint / f"{disk}.raw") for disk in SIZES]) > 0
    snapmount("delete", guest.name)
    assert is_clear(loop)


def test_a_block_device_that_is_full_ends_the_snapshot_and_frees_the_guest(
    guest: vm.VM, mountpoint: Path, loop: Path
) -> None:
    """The device is smaller than the disk, and the server cannot act in time: it is stopped."""
    with guest.suspended():
        taken = snapmount_json("--scratch-device", f"vda={loop}", "--disk", "vda", guest.name, mountpoint)
        server = contextlib.ExitStack()
        server.enter_context(stopped(taken["server"]["pid"]))
    with server:
        wait_for(lambda: guest.state() == "paused", "the guest is paused")
    wait_for(lambda: guest.state() == "running", "the guest is freed")
    assert f"left on {loop}" in wait_given_up(guest.name)
    assert is_clear(loop)
    snapmount("delete", guest.name)


def is_clear(device: Path) -> bool:
    with device.open("rb") as f:
        return not any(f.read(MIB))


def test_a_block_device_that_something_is_on_is_refused(guest: vm.VM, mountpoint: Path, loop: Path) -> None:
    def refuse(device: Path | str = loop) -> str:
        return refused("--scratch-device", f"vda={device}", guest.name, mountpoint, code=5)

    subprocess.run(["mkfs.ext4", "-q", loop], check=True)
    message = refuse()
    assert "it carries ext4" in message
    assert f"wipefs -a {loop}" in message
    there = mountpoint.with_name(f"{mountpoint.name}-fs")
    there.mkdir()
    subprocess.run(["mount", loop, there], check=True)
    try:
        assert "is in use" in refuse()
    finally:
        subprocess.run(["umount", there], check=True)
        there.rmdir()
    subprocess.run(["wipefs", "-q", "-a", loop], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", loop, "16M"], check=True)
    assert "it carries a qcow2 image" in refuse()
    assert "is not a block device" in refuse("/etc/hostname")
    assert "No such file" in refuse("/dev/snapmount-test-none")
    assert "'vdz'" in refused("--scratch-device", f"vdz={loop}", guest.name, mountpoint, code=3)
    assert traces.found() == []
