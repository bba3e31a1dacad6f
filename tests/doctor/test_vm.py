"""`snapmount doctor VM` of VMs whose disks are stored in several ways: as `take` would answer; nothing is changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.plan import Choice, Selection
from snapmount.doctor.service import Refusal
from snapmount.doctor.vm import LOOK_S, SOURCE_S, Question

from ..rig import clones, filesystems, vm
from ..rig.command import SNAPMOUNT, refused, snapmount
from .test_doctor import SYSTEM, namespace, run

__all__ = ["namespace"]

SIZE = 16 << 20
SHARED = """<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>
<target dev='vdz' bus='virtio'/><shareable/></disk>"""


def examined(name: str, *, within: Sequence[str] = (), code: int = 0) -> dict[str, Any]:
    """What the doctor says of the VM."""
    command = [*within, SNAPMOUNT, "doctor", "--json", *SYSTEM, name]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def row(document: dict[str, Any], disk: str, source: str) -> dict[str, Any]:
    (found,) = [each for each in document["disks"] if (each["disk"], each["source"]) == (disk, source)]
    return dict(found)


def whole(document: dict[str, Any], source: str) -> dict[str, Any]:
    (found,) = [each for each in document["sources"] if each["source"] == source]
    return dict(found)


@pytest.fixture(scope="module")
def places(libvirt: None) -> Iterator[dict[str, Path]]:
    with filesystems.mounted(400, "xfs") as xfs, filesystems.mounted(400, "btrfs") as btrfs:
        yield {"xfs": xfs, "btrfs": btrfs}


@pytest.fixture
def stored(places: dict[str, Path], clean: None) -> Iterator[vm.VM]:
    """A VM that is shut off, with a disk on each; nothing is left there."""
    disks = [vm.Disk("vda", "raw", SIZE, place=places["btrfs"]), vm.Disk("vdb", "qcow2", SIZE, place=places["xfs"])]
    with vm.running(f"{vm.PREFIX}-stored", disks, start=False) as off:
        yield off
        assert [path for place in places.values() for path in clones.places(place)] == []


needs_vm = pytest.mark.vm


@needs_vm
def test_each_disk_has_an_answer_of_each_source_with_its_cost(stored: vm.VM, places: dict[str, Path]) -> None:
    off = examined(stored.name)
    assert off["verdict"] == "ok"
    assert off["vm"] == {"name": stored.name, "uuid": stored.uuid(), "running": False}
    assert [(each["disk"], each["source"], each["serves"], each["means"]) for each in off["disks"]] == [
        ("vda", "pull", False, None),
        ("vda", "offline", True, "images"),
        ("vda", "storage", True, "btrfs"),
        ("vdb", "pull", False, None),
        ("vdb", "offline", True, "images"),
        ("vdb", "storage", True, "reflink"),
    ]
    assert row(off, "vda", "pull")["why_not"].startswith(f"{stored.name} is shut off")
    assert f"virsh start {stored.name}" in row(off, "vda", "pull")["remedy"]
    (need,) = row(off, "vdb", "storage")["needs"]
    assert need["place"].startswith(str(places["xfs"]))
    assert (need["most_bytes"], 0 < need["free_bytes"] < 400 << 20) == (SIZE, True)
    assert whole(off, "storage")["means"] == "btrfs, reflink"
    assert whole(off, "storage")["pause_s"] == 0

    stored.start(paused=True)
    stored.virsh("resume", stored.name)
    on = examined(stored.name)
    assert on["vm"]["running"]
    assert row(on, "vda", "pull")["means"] == "backup job"
    assert row(on, "vda", "pull")["needs"][0]["most_bytes"] >= SIZE
    assert not row(on, "vda", "offline")["serves"]
    assert row(on, "vda", "storage")["pause_s"] > 0
    assert "keeps its space" in row(on, "vda", "storage")["guest_pays"]
    assert whole(on, "pull")["serves"]
    assert whole(on, "storage")["pause_s"] >= row(on, "vdb", "storage")["pause_s"] > 0


@needs_vm
def test_a_missing_program_is_named_for_the_disk_that_it_would_serve(stored: vm.VM, namespace: list[str]) -> None:
    program = shutil.which("btrfs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert program
    run(*namespace, "mount", "--bind", "/dev/null", program)  # which nobody may execute
    document = examined(stored.name, within=namespace)
    (warning,) = [each for each in document["findings"] if each["check"] == "programs"]
    assert warning["text"].startswith("btrfs is missing")
    assert warning["text"].endswith("for vda")
    assert warning["remedy"].endswith("btrfs-progs")
    assert (document["verdict"], row(document, "vda", "storage")["means"]) == ("warning", "reflink")


@needs_vm
def test_a_vm_with_a_disk_that_nothing_takes_is_a_problem(clean: None, tmp_path: Path) -> None:
    shared = tmp_path / "vdz.img"
    shared.write_bytes(bytes(SIZE))
    with vm.running(
        f"{vm.PREFIX}-odd", [vm.Disk("vda", "raw", SIZE)], start=False, extra_devices=SHARED.format(shared)
    ) as odd:
        document = examined(odd.name, code=7)
        assert document["verdict"] == "problem"
        assert not any(each["serves"] for each in document["sources"])
        assert row(document, "vda", "offline")["serves"]
        assert "<shareable/>" in row(document, "vdz", "offline")["why_not"]
        (problem,) = [each for each in document["findings"] if each["status"] == "problem"]
        assert problem["remedy"].endswith("--exclude-disk vdz")


@needs_vm
def test_a_disk_that_is_left_out_says_why_and_the_text_is_for_people(writer: vm.VM) -> None:
    document = examined(writer.name)
    assert ("CD-ROM", True) in [(each["why"], bool(each["name"])) for each in document["left_out"]]
    lines = snapmount("doctor", *SYSTEM, writer.name).stdout.splitlines()
    assert lines[0].startswith("yes  vda  pull (backup job)")
    assert lines[-1] == "what snapshots need is there"
    assert f"there is no VM '{vm.PREFIX}-none'" in refused("doctor", f"{vm.PREFIX}-none", code=3)


# -- sources that hang -------------------------------------------------------------------------------------------------


class Hanging:
    """A source that never answers."""

    async def why_not(self, domain: object) -> None:
        await trio.sleep_forever()


@dataclass(frozen=True)
class Subject:
    """As much of a VM as is looked at here."""

    selection: Selection
    domain: object = None
    choice: Choice = field(default_factory=Choice)


async def test_a_source_that_hangs_costs_seconds_whatever_the_number_of_disks(autojump_clock: MockClock) -> None:
    disk = DiskDefinition("vda", "disk", "file", "raw", "/vda.img")
    chosen = tuple(replace(disk, name=f"vd{letter}") for letter in "abcdefgh")
    question = Question("storage", Hanging(), Subject(Selection(chosen, ())))  # type: ignore[arg-type]
    await question.ask()
    assert trio.current_time() <= SOURCE_S + 1
    answers = [each.answer for each in question.rows]
    assert len(answers) == len(chosen)
    assert answers[0] == Refusal(f"no answer within {LOOK_S:g} s", "dmesg | tail")
    assert answers[-1] == Refusal(
        f"not looked at to the end: {SOURCE_S:g} s were not enough for all disks", "dmesg | tail"
    )
    assert isinstance(question.whole, Refusal)
