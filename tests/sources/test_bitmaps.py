"""Which disks can have bitmaps of changes, and which count as changed as a whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from snapmount.core.checkpoint import Since, since
from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.plan import Selection
from snapmount.core.snapshot import Disk
from snapmount.sources import bitmaps, marking

from ..core.test_checkpoint import DISK, MONDAY

QCOW2 = DiskDefinition("vda", "disk", "network", "qcow2", "/images/vda.qcow2")


class Libvirt:
    """A daemon of some version."""

    def __init__(self, version: str) -> None:
        self._version = version

    async def version(self) -> str:
        return self._version


@dataclass(frozen=True)
class Subject:
    """What a source is told, as far as it matters here."""

    connection: Libvirt
    selection: Selection
    checkpoint: str | None = "tuesday"
    since: Since | None = None
    warn: Callable[[str], None] = print


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("6.9.0", {"vda": "libvirt 6.9.0 is too old for checkpoints; 6.10.0 is not"}), ("9.0.0", {})],
)
async def test_the_daemon_s_version_decides(version: str, expected: dict[str, str]) -> None:
    subject = Subject(Libvirt(version), Selection((QCOW2,), ()))
    assert await bitmaps.unmarked(subject) == expected  # type: ignore[arg-type]


async def test_which_images_hold_bitmaps(tmp_path: Path) -> None:
    assert await bitmaps.why_unmarked(QCOW2) is None
    assert await bitmaps.why_unmarked(replace(QCOW2, format="raw")) == "a raw image holds no bitmap of changes"
    assert "read-only" in (await bitmaps.why_unmarked(replace(QCOW2, is_readonly=True)) or "")
    for compat, why in (("0.10", "its image is qcow2 of version 2, which holds no bitmap of changes"), ("1.1", None)):
        image = tmp_path / f"{compat}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={compat}", image, "1M")
        assert await bitmaps.why_unmarked(replace(QCOW2, kind="file", origin=str(image))) == why


def test_a_checkpoint_without_any_disk_is_not_made_and_that_is_said() -> None:
    said: list[str] = []
    subject = Subject(Libvirt("9.0.0"), Selection((QCOW2,), ()), warn=said.append)
    assert marking.marked(subject, {}) == ("vda",)  # type: ignore[arg-type]
    assert said == []
    assert marking.marked(subject, {"vda": "so it is"}) == ()  # type: ignore[arg-type]
    assert said == ["no checkpoint is made: vda: so it is"]
    assert marking.marked(replace(subject, checkpoint=None), {}) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("disk", "checkpoint", "why"),
    [
        (DISK, MONDAY, None),
        (replace(DISK, name="vdb"), MONDAY, "it is not part of checkpoint monday"),
        (replace(DISK, origin="/new"), MONDAY, "its image was /images/vda.qcow2 at checkpoint monday"),
        (DISK, replace(MONDAY, source={"kind": "storage"}), "checkpoint monday was made by --source storage"),
        (DISK, replace(MONDAY, source={"kind": "offline"}), None),
        (DISK, replace(MONDAY, counts=False), "there is no checkpoint yet"),
    ],
)
def test_why_a_disk_is_full(disk: Disk, checkpoint: object, why: str | None) -> None:
    asked = since("last", [checkpoint])  # type: ignore[list-item]
    (planned,) = marking.planned([disk], {}, asked, bitmaps.KINDS)
    assert planned.full == why
    assert [each.disk for each in bitmaps.increments([planned], asked)] == ([] if why else ["vda"])


def test_what_cannot_be_marked_is_full_whatever_the_checkpoint_says() -> None:
    (planned,) = marking.planned([DISK], {"vda": "so it is"}, since("last", [MONDAY]), bitmaps.KINDS)
    assert planned.full == "so it is"
    assert marking.planned([DISK], {"vda": "so it is"}, None, bitmaps.KINDS) == (DISK,)


async def test_a_bitmap_in_an_image_at_rest_is_looked_for(tmp_path: Path) -> None:
    image = tmp_path / "vda.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    disk, asked = replace(DISK, origin=str(image)), since("last", [MONDAY])
    (found,) = await bitmaps.at_rest([disk], asked)
    assert found.full == "its bitmap of checkpoint monday is missing or broken"
    qemu_img("bitmap", "--add", "-f", "qcow2", image, "monday")
    assert await bitmaps.at_rest([disk], asked) == (disk,)
    assert await bitmaps.at_rest([disk], None) == (disk,)
