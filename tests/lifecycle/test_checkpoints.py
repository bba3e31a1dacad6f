"""Checkpoints and what has changed since: on a VM that is paused, whose disks are written by QEMU itself."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..rig import traces, vm
from ..rig.command import SNAPMOUNT, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
MIB = 1 << 20
KILLS = 8
NONE = "there is no checkpoint yet"
RAW = "a raw image holds no bitmap of changes"


@pytest.fixture(scope="module")
def paused(libvirt: None) -> Iterator[vm.VM]:
    """A VM with two qcow2 disks and a raw one."""
    disks = [vm.Disk("vda", "qcow2"), vm.Disk("vdb", "qcow2"), vm.Disk("vdc", "raw")]
    with vm.running("snapmount-test-marked", disks, paused=True) as machine:
        yield machine


@pytest.fixture
def marked(paused: vm.VM, clean: None) -> Iterator[vm.VM]:
    """The same for one test, which begins and ends without checkpoints."""
    if paused.state() == "shut off":
        paused.start(paused=True)
    yield paused
    if paused.state() == "shut off":
        paused.start(paused=True)
    snapmount("checkpoints", paused.name, "--keep", "0")
    assert bitmaps(paused) == {}


def write(machine: vm.VM, disk: str, what: str) -> None:
    """Let QEMU write to a disk, in qemu-io's words."""
    device = f"/machine/peripheral/virtio-disk{'abc'.index(disk[-1])}/virtio-backend"
    machine.virsh("qemu-monitor-command", "--hmp", machine.name, f'qemu-io -d {device} "{what}"')


def bitmaps(machine: vm.VM) -> dict[str, list[str]]:
    """The bitmaps that QEMU has of each disk that has any."""
    answer = machine.virsh("qemu-monitor-command", machine.name, '{"execute": "query-named-block-nodes"}')
    nodes = [node for node in json.loads(answer)["return"] if node.get("dirty-bitmaps")]
    return {Path(node["file"]).stem: sorted(each["name"] for each in node["dirty-bitmaps"]) for node in nodes}


def taken(machine: vm.VM, mountpoint: Path, *options: str) -> dict[str, str | None]:
    """Take a snapshot, and end it; why each disk is full, None if its changes are known."""
    shown = snapmount_json(machine.name, mountpoint, *options)
    snapmount("delete", machine.name)
    return {disk["name"]: disk["full"] for disk in shown["disks"]}


def dirty(mountpoint: Path, disk: str) -> list[tuple[int, int, bool]]:
    """The dirty extents, as the file and the verb tell them: where each begins, its length, and whether it is zero."""
    extents = json.loads((mountpoint / f"{disk}.dirty").read_text())
    found = [(each["start"], each["length"], each["zero"]) for each in extents]
    rows = [line.split() for line in snapmount("dirty", mountpoint, "--disk", disk).stdout.splitlines()]
    assert [(int(start), int(length), kind == "zero") for _, start, length, kind in rows] == found
    return found


def names_of(machine: vm.VM) -> list[str]:
    return [each["name"] for each in snapmount_json("checkpoints", machine.name)["checkpoints"]]


@pytest.mark.sample
def test_the_first_snapshot_is_full_and_the_next_one_knows_what_has_changed(marked: vm.VM, mountpoint: Path) -> None:
    said = snapmount(marked.name, mountpoint, "--checkpoint", "--since", "last").stdout
    assert [line for line in said.splitlines() if "full" in line] == [
        f"vda is full: {NONE}",
        f"vdb is full: {NONE}",
        f"vdc is full: {RAW}",
    ]
    assert dirty(mountpoint, "vdb") == [(0, 32 * MIB, True)], "all of it counts as changed"
    shown = json.loads((mountpoint / "snapshot.json").read_text())
    assert shown["since"] == "last"
    snapmount("delete", marked.name)
    assert names_of(marked) == [shown["checkpoint"]]

    write(marked, "vda", "write -P 7 1M 64k")
    write(marked, "vda", "write -z 2M 1M")
    write(marked, "vdb", "write -z 4M 64k")
    said = snapmount(marked.name, mountpoint, "--checkpoint=second", "--since", "last").stdout
    write(marked, "vda", "write -P 8 8M 64k")
    assert "checkpoint second is of this moment" in said
    assert f"since checkpoint {shown['checkpoint']}: the changes of vda and vdb are known" in said
    assert f"vdc is full: {RAW}" in said
    assert dirty(mountpoint, "vda") == [(MIB, 65536, False), (2 * MIB, MIB, True)]
    assert dirty(mountpoint, "vdb") == [(4 * MIB, 65536, True)]
    assert dirty(mountpoint, "vdc") == [(0, 32 * MIB, True)]
    snapmount("delete", marked.name)

    snapmount(marked.name, mountpoint, "--since", "second")
    assert dirty(mountpoint, "vda") == [(8 * MIB, 65536, False)]
    assert dirty(mountpoint, "vdb") == []
    snapmount("delete", marked.name)
    assert names_of(marked) == [shown["checkpoint"], "second"], "a snapshot without --checkpoint makes none"
    assert "second  " in snapmount("checkpoints", marked.name).stdout
    assert snapmount("checkpoints", marked.name, "--keep", "1").stdout == (
        f"{marked.name}: checkpoint {shown['checkpoint']} is removed\n"
    )
    assert bitmaps(marked) == {"vda": ["second"], "vdb": ["second"]}


def test_a_full_image_and_increments_over_it_are_each_view(marked: vm.VM, mountpoint: Path, tmp_path: Path) -> None:
    chance = random.Random(18)
    disks = [disk.name for disk in marked.disks]
    for number in range(5):
        for _ in range(12):
            scribble(marked, chance.choice(disks), chance)
        backing = [f"--backing={disk}=qcow2:{disk}.{number - 1}" for disk in disks] if number else []
        snapmount(marked.name, mountpoint, "--checkpoint", "--since=last", *backing)
        scribble(marked, "vda", chance)
        for disk in disks:
            copy = tmp_path / f"{disk}.{number}"
            shutil.copy(mountpoint / (f"{disk}.inc.qcow2" if number else f"{disk}.qcow2"), copy)
            subprocess.run(["qemu-img", "check", "-q", copy], check=True)
            view = mountpoint / f"{disk}.raw"
            subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", copy, view], check=True)
        snapmount("delete", marked.name)


def scribble(machine: vm.VM, disk: str, chance: random.Random) -> None:
    """Write data or zeros somewhere."""
    start, length = chance.randrange(0, 31 * MIB, 512), chance.randrange(512, 300 << 10, 512)
    what = chance.choice([f"write -P {chance.randrange(1, 255)}", "write -z", "write -z -u"])
    write(machine, disk, f"{what} {start} {length}")


def test_a_backing_file_is_for_a_disk_of_the_snapshot(marked: vm.VM, mountpoint: Path) -> None:
    said = refused(marked.name, mountpoint, "--since=last", "--backing=vdx=qcow2:a", code=3)
    assert "--backing names vdx, which is no disk of the snapshot; it has vda, vdb and vdc" in said
    assert "--backing needs --since" in refused(marked.name, mountpoint, "--backing=vda=qcow2:a", code=2)
    assert "is not of the form" in refused(marked.name, mountpoint, "--since=last", "--backing=vda=a", code=2)


def test_a_vm_with_checkpoints_can_be_undefined_and_its_checkpoints_serve_when_it_is_back(
    marked: vm.VM, mountpoint: Path
) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    assert marked.virsh("checkpoint-list", "--name", marked.name).strip() == ""
    definition = marked.virsh("dumpxml", "--inactive", marked.name)
    marked.virsh("undefine", marked.name)
    file = mountpoint.parent / "vm.xml"
    file.write_text(definition)
    marked.virsh("define", str(file))
    write(marked, "vda", "write -P 7 1M 64k")
    snapmount(marked.name, mountpoint, "--since", "monday")
    assert dirty(mountpoint, "vda") == [(MIB, 65536, False)]
    snapmount("delete", marked.name)


def test_a_bitmap_that_somebody_has_removed_makes_its_disk_full_once(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    answer = marked.virsh("qemu-monitor-command", marked.name, '{"execute": "query-named-block-nodes"}')
    (node,) = (
        each["node-name"]
        for each in json.loads(answer)["return"]
        if each.get("dirty-bitmaps") and each["file"].endswith("vda.qcow2")
    )
    arguments: dict[str, Any] = {"node": node, "name": "monday"}
    command = {"execute": "block-dirty-bitmap-remove", "arguments": arguments}
    marked.virsh("qemu-monitor-command", marked.name, json.dumps(command))
    broken = "its bitmap of checkpoint monday is missing or broken"
    assert taken(marked, mountpoint, "--since=last", "--checkpoint=tuesday") == {
        "vda": broken,
        "vdb": None,
        "vdc": RAW,
    }
    assert taken(marked, mountpoint, "--since=last") == {"vda": None, "vdb": None, "vdc": RAW}
    snapmount("checkpoints", marked.name, "--delete", "monday")
    assert bitmaps(marked) == {"vda": ["tuesday"], "vdb": ["tuesday"]}


def test_after_a_crash_of_qemu_disks_are_full_once_and_the_broken_bitmaps_go(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    subprocess.run(["kill", "-KILL", str(marked.qemu_pid())], check=True)
    wait_for(lambda: marked.state() == "shut off", "libvirt has noticed")
    marked.start(paused=True)
    broken = "its bitmap of checkpoint monday is missing or broken"
    known = taken(marked, mountpoint, "--since=monday", "--checkpoint=tuesday")
    assert known == {"vda": broken, "vdb": broken, "vdc": RAW}
    assert taken(marked, mountpoint, "--since=last")["vda"] is None
    snapmount("checkpoints", marked.name, "--delete", "monday")
    assert bitmaps(marked) == {"vda": ["tuesday"], "vdb": ["tuesday"]}


def test_a_checkpoint_outlives_an_orderly_end_of_qemu_and_is_removed_from_images_at_rest(
    marked: vm.VM, mountpoint: Path
) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    write(marked, "vda", "write -P 7 1M 64k")
    marked.virsh("destroy", "--graceful", marked.name)
    snapmount(marked.name, mountpoint, "--checkpoint=tuesday", "--since=last")
    assert dirty(mountpoint, "vda") == [(MIB, 65536, False)], "it is known of a VM that is shut off"
    snapmount("delete", marked.name)
    marked.start(paused=True)
    write(marked, "vda", "write -P 8 3M 64k")
    snapmount(marked.name, mountpoint, "--since", "monday")
    assert dirty(mountpoint, "vda") == [(MIB, 65536, False), (3 * MIB, 65536, False)]
    snapmount("delete", marked.name)
    snapmount(marked.name, mountpoint, "--since", "tuesday")
    assert dirty(mountpoint, "vda") == [(3 * MIB, 65536, False)]
    snapmount("delete", marked.name)
    snapmount("checkpoints", marked.name, "--delete", "tuesday")
    marked.virsh("destroy", "--graceful", marked.name)
    snapmount("checkpoints", marked.name, "--delete", "monday")
    for disk in ("vda", "vdb"):
        image = marked.directory / f"{disk}.qcow2"
        said = subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True, check=True).stdout
        assert "bitmaps" not in json.loads(said)["format-specific"]["data"]


def test_an_image_that_was_exchanged_or_has_grown(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    marked.virsh("blockresize", marked.name, "vda", "40M")
    snapmount(marked.name, mountpoint, "--since", "monday")
    assert dirty(mountpoint, "vda") == [(32 * MIB, 8 * MIB, True)]
    assert dirty(mountpoint, "vdb") == []
    snapmount("delete", marked.name)
    marked.virsh(
        "snapshot-create-as", marked.name, "outside", "--disk-only", "--no-metadata", "--diskspec", "vdc,snapshot=no"
    )
    full = taken(marked, mountpoint, "--since=monday", "--checkpoint=tuesday")
    assert full["vda"] == f"its image was {marked.directory}/vda.qcow2 at checkpoint monday"
    write(marked, "vda", "write -P 9 1M 64k")
    snapmount(marked.name, mountpoint, "--since", "last")
    assert dirty(mountpoint, "vda") == [(MIB, 65536, False)]
    snapmount("delete", marked.name)
    for disk in ("vda", "vdb"):
        marked.virsh("blockcommit", marked.name, disk, "--active", "--pivot", "--wait")
    full = taken(marked, mountpoint, "--since=last")
    assert full["vda"] == f"its image was {marked.directory}/vda.outside at checkpoint tuesday"


def test_the_checkpoint_of_a_snapshot_that_is_lost_does_not_count(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    snapmount(marked.name, mountpoint, "--checkpoint=tuesday")
    (tuesday,) = snapmount_json("checkpoints", marked.name)["checkpoints"][1:]
    assert not tuesday["counts"], "its snapshot lives"
    marked.abort_job()
    wait_for(lambda: snapmount_json("list")[0]["state"] == "lost", "it is noticed")
    snapmount("delete", marked.name)
    assert names_of(marked) == ["monday"]
    assert bitmaps(marked) == {"vda": ["monday"], "vdb": ["monday"]}
    assert (
        taken(marked, mountpoint, "--since=tuesday")["vda"] == "there is no checkpoint tuesday any more, or never was"
    )


def test_a_checkpoint_is_discarded_with_its_snapshot_if_that_is_wanted(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    snapmount(marked.name, mountpoint, "--checkpoint=tuesday")
    snapmount("delete", "--discard-checkpoint", marked.name)
    assert names_of(marked) == ["monday"]
    assert bitmaps(marked) == {"vda": ["monday"], "vdb": ["monday"]}


def test_after_sigkill_of_the_server_the_snapshot_is_recovered_and_its_checkpoint_counts(
    marked: vm.VM, mountpoint: Path
) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    write(marked, "vda", "write -P 7 1M 64k")
    server = snapmount_json(marked.name, mountpoint, "--checkpoint=tuesday", "--since=last")["server"]["pid"]
    subprocess.run(["kill", f"-{signal.SIGKILL}", str(server)], check=True)
    wait_for(lambda: snapmount_json("list")[0]["state"] == "dead", "it is dead")
    snapmount("recover")
    assert dirty(mountpoint, "vda") == [(MIB, 65536, False)]
    snapmount("delete", marked.name)
    assert names_of(marked) == ["monday", "tuesday"]


def test_a_dead_snapshot_whose_vm_has_ended_leaves_no_checkpoint_that_counts(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    server = snapmount_json(marked.name, mountpoint, "--checkpoint=tuesday")["server"]
    for pid in (server["standby_pid"], server["pid"]):
        subprocess.run(["kill", f"-{signal.SIGKILL}", str(pid)], check=True)
    marked.virsh("destroy", "--graceful", marked.name)
    assert "could not be re-attached, and has been removed" in snapmount("recover").stdout
    assert names_of(marked) == ["monday"]


def test_what_cannot_be_is_said(marked: vm.VM, mountpoint: Path) -> None:
    taken(marked, mountpoint, "--checkpoint=monday")
    said = refused(marked.name, mountpoint, "--checkpoint=monday", code=4)
    assert f"{marked.name} has a checkpoint monday already" in said
    assert f"try: snapmount checkpoints {marked.name} --delete monday" in said
    said = refused("checkpoints", marked.name, "--delete", "sunday", code=3)
    assert f"{marked.name} has no checkpoint sunday; it has monday" in said
    assert "cannot be a checkpoint's name" in refused(marked.name, mountpoint, "--checkpoint=../x", code=2)
    assert "--since needs a value" in refused(marked.name, mountpoint, "--since", code=2)


def test_sigkill_of_all_of_it_at_any_moment_and_the_next_one_just_works(marked: vm.VM, mountpoint: Path) -> None:
    began = time.monotonic()
    assert taken(marked, mountpoint, "--checkpoint", "--since=last")["vda"] == NONE
    took_s = time.monotonic() - began
    for moment in range(KILLS):
        with subprocess.Popen(
            [SNAPMOUNT, marked.name, mountpoint, "--checkpoint", "--since=last"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as command:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(took_s * (moment + 0.5) / KILLS)
            subprocess.run(["pkill", "-KILL", "-f", traces.PROCESSES])
        snapmount("recover")
        snapmount("delete", marked.name, check=False)  # if it was there by then
        place = (moment + 1) * MIB
        write(marked, "vda", f"write -P 7 {place} 64k")
        snapmount(marked.name, mountpoint, "--checkpoint", "--since=last")
        assert (place, 65536, False) in dirty(mountpoint, "vda"), moment
        assert len(dirty(mountpoint, "vda")) == 1, "and the checkpoints before it served"
        snapmount("delete", marked.name)
        assert bitmaps(marked)["vda"] == sorted(names_of(marked)), moment
        snapmount("checkpoints", marked.name, "--keep", "1")
