"""Who watches the space that checkpoints take while no snapshot is there: the guest never finds none for their sake."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.records import checkpoints

from ..rig import clones, filesystems, traces, vm
from ..rig.command import snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
STORAGE = ("--source", "storage")
SIZE = 128 << 20
LEAVE = 112 << 20  # less than what the guest overwrites takes, more than what is kept free for it
BLOCK = 64 << 10
PACE_S = 1 / 640  # for a block: 40 MiB a second, since the host that tests is busy
KEEPER = "^snapmount: keeper of the checkpoints"


def fill(path: Path) -> None:
    path.write_bytes(os.urandom(SIZE))


@pytest.fixture
def stored(clean: None) -> Iterator[tuple[vm.VM, Path]]:
    """A VM that is shut off, and the file system with its raw disk; no clone is left there at the end."""
    with filesystems.mounted(400, "xfs") as place:
        disk = vm.Disk("vda", "raw", SIZE, fill=fill, place=place)
        with vm.running(f"{vm.PREFIX}-watched", [disk], start=False) as off:
            yield off, place
            snapmount("checkpoints", off.name, "--keep", "0")
            assert clones.places(place) == []
            assert traces.found() == []


def take(off: vm.VM, mountpoint: Path, name: str) -> None:
    snapmount(*STORAGE, off.name, mountpoint, f"--checkpoint={name}")
    snapmount("delete", off.name)
    wait_for(lambda: not snapmount_json("checkpoints", off.name)["unwatched"], "somebody watches")


def names_of(off: vm.VM) -> list[str]:
    return [each["name"] for each in snapmount_json("checkpoints", off.name)["checkpoints"]]


def overwrite(path: Path, length: int) -> int:
    """Write as a guest does; how many writes have failed."""
    errors = 0
    data = mmap.mmap(-1, BLOCK)
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        for at in range(0, length, BLOCK):
            data[:8] = at.to_bytes(8, "little")
            began = time.monotonic()
            try:
                os.pwrite(descriptor, data, at)
            except OSError:
                errors += 1
            time.sleep(max(0.0, PACE_S - (time.monotonic() - began)))
    finally:
        os.close(descriptor)
    return errors


def keepers() -> list[int]:
    return [int(pid) for pid in subprocess.run(["pgrep", "-f", KEEPER], capture_output=True, text=True).stdout.split()]


def test_a_checkpoint_is_given_up_before_a_guest_that_overwrites_its_disk_finds_no_space(
    stored: tuple[vm.VM, Path], mountpoint: Path
) -> None:
    off, place = stored
    with filesystems.filled(place, LEAVE):
        take(off, mountpoint, "monday")
        assert names_of(off) == ["monday"], "there is space for now"
        assert overwrite(place / "vda.img", SIZE) == 0
        wait_for(lambda: names_of(off) == [], "it has gone")
        assert clones.places(place) == []
        assert overwrite(place / "vda.img", SIZE) == 0
    wait_for(lambda: keepers() == [], "nobody watches any more")


def test_the_oldest_goes_first_and_no_more_than_must(stored: tuple[vm.VM, Path], mountpoint: Path) -> None:
    off, place = stored
    take(off, mountpoint, "monday")
    assert overwrite(place / "vda.img", SIZE // 2) == 0
    take(off, mountpoint, "tuesday")
    shown = snapmount(*STORAGE, off.name, mountpoint, "--since=monday").stdout
    assert "since checkpoint monday: the changes of vda are known" in shown
    snapmount("delete", off.name)
    (keeper,) = keepers()
    os.kill(keeper, 9)
    with filesystems.filled(place, LEAVE - (32 << 20)):
        assert names_of(off) == ["monday", "tuesday"], "nobody watches"
        said = snapmount("checkpoints", off.name)
        assert "warning: nobody watches the space that these checkpoints take" in said.stderr
        snapmount("recover")
        wait_for(lambda: names_of(off) == ["tuesday"], "the oldest has gone")
        (keeper,) = keepers()
        assert filesystems.free_bytes(place) > LEAVE
        said = snapmount("checkpoints", off.name)
        assert "warning" not in said.stderr
        assert names_of(off) == ["tuesday"]
    snapmount("checkpoints", off.name, "--delete", "tuesday")
    assert keepers() == [], "it has ended with the last one"


def test_a_record_that_cannot_be_read_keeps_nobody_from_watching_the_others(
    stored: tuple[vm.VM, Path], mountpoint: Path
) -> None:
    off, place = stored
    with filesystems.filled(place, LEAVE):
        take(off, mountpoint, "monday")
        (monday,) = checkpoints.of_vm(off.uuid())
        broken = checkpoints.path(monday).with_name("broken.json")
        broken.write_text("{")
        assert overwrite(place / "vda.img", SIZE) == 0
        wait_for(lambda: clones.places(place) == [], "it has gone")
        broken.unlink()
        broken.parent.rmdir()
        broken.parent.parent.rmdir()
        broken.parent.parent.parent.rmdir()
