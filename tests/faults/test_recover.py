"""A snapshot whose server was killed is taken over: the same point in time, at the same place; or removed, and said."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..rig import libiscsi, prefix, servers, traces, vm
from ..rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for
from ..rig.signals import interrupted
from ..rig.tgtd import listens_at, tgtds

pytestmark = pytest.mark.vm
SEED = 7
LISTING = ["domain.xml", "snapshot.json", "vda.map", "vda.qcow2", "vda.raw", "vdb.map", "vdb.qcow2", "vdb.raw"]


def facts(mountpoint: Path) -> dict[str, Any]:
    """What must be the same again: bytes, sizes, owners and times."""
    shown = {}
    for name in ("domain.xml", "snapshot.json", "vda.raw", "vdb.raw"):
        status = (mountpoint / name).stat()
        content = read_direct(mountpoint / name) if name.endswith(".raw") else (mountpoint / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shown[name] = (digest, status.st_size, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
    return shown


@contextlib.contextmanager
def looked_at(mountpoint: Path) -> Iterator[set[str]]:
    """What a reader that lists the directory all the time gets to see."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                seen.add(" ".join(sorted(os.listdir(mountpoint))))
            except OSError as error:
                seen.add(errno.errorcode[error.errno or 0])

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        over.set()
        reader.join()


@pytest.mark.sample
def test_a_dead_snapshot_is_re_attached_where_it_was_and_nobody_sees_an_empty_directory(
    writer: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json("--expire", "1h", "--read-timeout", "25", writer.name, mountpoint)
    before = facts(mountpoint)
    servers.kill(taken)
    assert f"(snapmount recover {taken['id']})" in snapmount("list").stdout
    writer.keeps_writing(200)
    with looked_at(mountpoint) as seen:
        wait_for(lambda: seen == {"ENOTCONN"}, "the reader has looked")
        done = snapmount_json("recover")
        wait_for(lambda: len(seen) > 1, "the reader sees the view")
    assert seen == {"ENOTCONN", " ".join(LISTING)}
    assert (done["removed"], done["orphans"]) == ([], [])
    (again,) = done["reattached"]
    changed = ("server", "scratch", "expires")
    assert {**again, **dict.fromkeys(changed)} == {**taken, **dict.fromkeys(changed)}
    assert abs(int(again["expires"][17:19]) - int(taken["expires"][17:19])) in (0, 1, 59)
    assert again["server"]["pid"] != taken["server"]["pid"]
    assert facts(mountpoint) == before
    assert prefix.prove(SEED, [read_direct(mountpoint / name) for name in ("vda.raw", "vdb.raw")]) > 0
    assert snapmount("recover").stdout == "nothing to recover\n", "there is nothing to recover"
    assert "is active, in the hands of process" in snapmount("recover", mountpoint).stderr

    servers.kill(again)
    assert "re-attached to snapshot" in snapmount("show", mountpoint).stderr, "so does the next command that touches it"
    assert facts(mountpoint) == before
    subprocess.run(["umount", mountpoint], check=True)
    wait_for(lambda: traces.found() == [], "the end of the last view ends it all")


def test_a_take_or_boot_of_its_vm_re_attaches_a_dead_snapshot(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    other = mountpoint.parent / f"{mountpoint.name}-other"
    other.mkdir()
    try:
        servers.kill(taken)
        message = refused(writer.name, other, code=4)
        assert f"re-attached to snapshot {taken['id']}" in message
        assert f"{writer.name} has a snapshot already: {taken['id']}" in message
    finally:
        other.rmdir()
    assert os.listdir(mountpoint)
    servers.kill(servers.listed(taken["id"]))
    booted = snapmount_json("boot", "--wait-for", "guest is up", mountpoint)
    assert booted["snapshot"] == taken["id"]
    snapmount("delete", "--force", writer.name)


def test_luns_are_published_again_under_the_same_names(writer: vm.VM, tmp_path: Path) -> None:
    libiscsi.skip_where_missing()
    port = libiscsi.free_port()
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name)
    before = lun_bytes(taken, tmp_path)
    servers.kill(taken)
    writer.keeps_writing(100)
    [tgtd] = tgtds(Path("/run/snapmount", taken["id"]))
    os.kill(tgtd, signal.SIGKILL)
    wait_for(lambda: not listens_at(port), "nothing listens at the portal")
    with socket.create_server(("127.0.0.1", port)):
        said = refused("recover", taken["id"], code=4)
        assert f"127.0.0.1:{port} is in use by " in said
        assert f"and initiators know the LUNs of snapshot {taken['id']} there" in said
        assert f"  try: snapmount recover {taken['id']} " in said
    snapmount("recover", taken["id"])
    again = snapmount_json("show", "--show-secret", taken["id"])
    assert {**again["iscsi"], "sessions": None} == {**taken["iscsi"], "sessions": None}
    assert lun_bytes(taken, tmp_path) == before
    snapmount("delete", taken["id"])


def lun_bytes(shown: dict[str, Any], directory: Path) -> list[bytes]:
    """All bytes of all LUNs, read by an initiator."""
    target, found = shown["iscsi"], []
    for lun in target["luns"]:
        url = f"iscsi://snapmount%{target['secret']}@{target['portals'][0]}/{target['iqn']}/{lun['number']}"
        libiscsi.output("qemu-img", "convert", "-f", "raw", "-O", "raw", url, str(directory / "lun"))
        found.append((directory / "lun").read_bytes())
    return found


# -- what cannot be re-attached ----------------------------------------------------------------------------------------


def test_a_snapshot_whose_job_was_ended_meanwhile_is_removed_and_said(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    writer.abort_job()
    done = snapmount_json("recover")
    what = f"{writer.name}: snapshot {taken['id']} could not be re-attached"
    why = f"{what}, and has been removed: its backup job has ended"
    assert done["removed"] == [{"id": taken["id"], "vm": writer.name, "why": why}]
    assert done["reattached"] == []
    assert os.listdir(mountpoint) == []
    assert traces.found() == []


def test_a_snapshot_whose_vm_has_ended_or_was_started_anew_is_removed_and_said(own_vm: vm.VM, mountpoint: Path) -> None:
    servers.kill(snapmount_json(own_vm.name, mountpoint))
    own_vm.virsh("destroy", own_vm.name)
    assert f"removed: {own_vm.name} was destroyed" in refused("show", own_vm.name, code=4)
    assert traces.found() == []
    own_vm.start()
    first = snapmount_json(own_vm.name, mountpoint)
    servers.kill(first)
    own_vm.virsh("destroy", own_vm.name)
    own_vm.start()
    done = snapmount(own_vm.name, mountpoint)
    assert "removed: its backup job has ended" in done.stderr
    assert snapmount_json("list")[0]["id"] != first["id"], "and the new one is taken"
    snapmount("delete", own_vm.name)


def test_a_snapshot_that_expires_while_it_is_dead_is_removed(writer: vm.VM, mountpoint: Path) -> None:
    """Nobody was there to end it: its standby would."""
    taken = snapmount_json("--expire", "4s", writer.name, mountpoint)
    os.kill(taken["server"]["standby_pid"], signal.SIGKILL)
    servers.kill(taken)
    wait_for(lambda: servers.listed(taken["id"])["expires"] <= now(), "its time is over")
    assert "removed: it has expired" in snapmount("recover", taken["id"]).stdout
    assert traces.found() == []


def now() -> str:
    return subprocess.run(["date", "-u", "+%Y-%m-%dT%H:%M:%S.%6NZ"], capture_output=True, text=True).stdout.strip()


def test_scratch_vms_whose_disks_died_are_ended_and_said(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    passing = snapmount_json("boot", "--wait-for", "guest is up", mountpoint)
    kept = snapmount_json("boot", "--keep", "--wait-for", "guest is up", mountpoint)
    servers.kill(taken)
    said = snapmount("recover", taken["id"]).stderr
    assert f"the scratch VM {passing['name']} has been ended: its disks have died" in said
    assert f"the scratch VM {kept['name']} has been stopped" in said
    (left,) = servers.listed(taken["id"])["scratch_vms"]
    assert (left["name"], left["state"]) == (kept["name"], "shut off")
    assert not Path(passing["overlay_directory"]).exists()
    again = vm.VM(kept["name"], Path(kept["overlay_directory"]))
    again.virsh("start", again.name)
    wait_for(lambda: servers.listed(taken["id"])["scratch_vms"][0]["state"] == "running", "it can be started again")
    snapmount("delete", "--force", taken["id"])
    assert traces.found() == []


def test_a_snapshot_that_was_taken_to_boot_is_removed_with_its_scratch_vms(writer: vm.VM) -> None:
    booted = snapmount_json("boot", "--wait-for", "guest is up", writer.name)
    servers.kill(servers.listed(booted["snapshot"]))
    assert "it was taken for scratch VMs" in snapmount("recover").stdout
    assert traces.found() == []


# -- what can be tried again -------------------------------------------------------------------------------------------


def test_a_mountpoint_that_is_taken_meanwhile_keeps_it_dead_until_it_is_free(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    before = facts(mountpoint)
    servers.kill(taken)
    subprocess.run(["umount", "-l", mountpoint], check=True)
    (mountpoint / "of-others").write_text("")
    assert f"the mountpoint {mountpoint} is not empty" in refused("recover", taken["id"], code=4)
    assert servers.listed(taken["id"])["state"] == "dead"
    assert "is not empty" in snapmount("show", taken["id"]).stderr, "it is shown as it is"
    (mountpoint / "of-others").unlink()
    snapmount("recover", taken["id"])
    assert facts(mountpoint) == before
    snapmount("delete", taken["id"])


def test_ctrl_c_during_a_recover_leaves_it_as_it_was(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    record = traces.RUNTIME / taken["id"] / "record.json"
    code, complaint = interrupted(
        [SNAPMOUNT, "recover", taken["id"]],
        lambda: holder(taken) != json.loads(record.read_text())["server"]["pid"],
        signal.SIGINT,
        undo=lambda: servers.kill(servers.listed(taken["id"])),
    )
    assert code == 130
    assert f"interrupted; snapshot {taken['id']} is as it was" in complaint
    assert servers.listed(taken["id"])["state"] == "dead"
    assert_dead(mountpoint)
    snapmount("delete", taken["id"])
    assert traces.found() == []


def test_a_recover_that_is_killed_can_be_done_again(writer: vm.VM, mountpoint: Path) -> None:
    """When its view is about to be mounted, and when it is where it belongs."""
    taken = snapmount_json(writer.name, mountpoint)
    before = facts(mountpoint)
    servers.kill(taken)
    views = traces.RUNTIME / taken["id"]
    mounted = f" {mountpoint} "
    counts: list[Callable[[], int]] = [
        lambda: len(list(views.glob("view-*"))),
        lambda: Path("/proc/self/mountinfo").read_text().count(mounted),
    ]
    for count in counts:
        kill_recover_when_there_is_one_more(taken, count)
        wait_for(lambda: servers.listed(taken["id"])["state"] == "dead", "it is dead as before")
        assert_dead(mountpoint)
    snapmount("recover", taken["id"])
    assert facts(mountpoint) == before
    snapmount("delete", taken["id"])
    assert traces.found() == []


def kill_recover_when_there_is_one_more(shown: dict[str, Any], count: Callable[[], int]) -> None:
    before = count()
    with subprocess.Popen([SNAPMOUNT, "recover", shown["id"]], stderr=subprocess.DEVNULL) as recover:
        wait_for(lambda: count() > before, "it has got that far")
        os.kill(holder(shown), signal.SIGKILL)
        recover.wait(timeout=60)


def holder(shown: dict[str, Any]) -> int:
    """The process that holds, or held last, the lock of a snapshot."""
    return int((traces.RUNTIME / shown["id"] / "lock").read_text() or 0)


def assert_dead(mountpoint: Path) -> None:
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(mountpoint)


def test_two_recovers_at_once_one_wins_and_the_other_says_who(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    commands = [
        subprocess.Popen([SNAPMOUNT, "recover", taken["id"]], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [command.communicate(timeout=60)[1] for command in commands]
    server = servers.listed(taken["id"])["server"]["pid"]
    assert [command.returncode for command in commands].count(0) >= 1
    assert any(f"in the hands of process {server}" in text for text in said)
    assert os.listdir(mountpoint)
    snapmount("delete", taken["id"])


def test_a_delete_during_a_recover_waits_for_it_and_leaves_nothing(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    with subprocess.Popen([SNAPMOUNT, "recover", taken["id"]], stdout=subprocess.DEVNULL) as recover:
        wait_for(lambda: holder(taken) != taken["server"]["pid"], "it is under way")
        snapmount("delete", taken["id"])
        recover.wait(timeout=60)
    assert traces.found() == []
    assert not writer.has_job()


def test_qemu_that_hangs_keeps_it_dead_and_nothing_is_thrown_away(own_vm: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(own_vm.name, mountpoint)
    before = facts(mountpoint)
    servers.kill(taken)
    os.kill(own_vm.qemu_pid(), signal.SIGSTOP)
    try:
        assert "did not answer within" in refused("recover", taken["id"], code=6)
        assert servers.listed(taken["id"])["state"] == "dead"
    finally:
        os.kill(own_vm.qemu_pid(), signal.SIGCONT)
    snapmount("recover", taken["id"])
    assert facts(mountpoint) == before
    snapmount("delete", taken["id"])
