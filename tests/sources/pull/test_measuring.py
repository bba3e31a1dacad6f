"""Scratch space is measured, and the figures are kept for others to show as long as they are of now."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.core.units import MIB
from snapmount.errors import SpaceError
from snapmount.sources.pull.figures import CURRENT_S, Figures
from snapmount.sources.pull.scratch import writeback
from snapmount.sources.pull.scratch.measuring import Gauge

from ...rig.records import a_record, by_pull


def test_figures_of_now_come_back(tmp_path: Path) -> None:
    assert Figures.load(tmp_path) is None
    for left in (None, 12.5):
        figures = Figures(time.monotonic(), 1 << 30, 1e6, left)
        figures.write(tmp_path)
        assert Figures.load(tmp_path) == figures


def test_figures_of_the_past_or_of_another_boot_are_none(tmp_path: Path) -> None:
    for at_s in (time.monotonic() - CURRENT_S - 1, time.monotonic() + 1000):
        Figures(at_s, 1, 1, None).write(tmp_path)
        assert Figures.load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"at_s": "soon", "used_bytes": 1, "bytes_per_s": 1, "left_s": 1}'])
def test_broken_figures_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "space.json").write_text(text)
    assert Figures.load(tmp_path) is None


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The directory with the scratch file of vda, of 3 MiB."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "vda.qcow2").write_bytes(b"x" * 3 * MIB)
    return tmp_path / "scratch"


@pytest.fixture
def gauge(scratch: Path) -> Iterator[Gauge]:
    gauge = Gauge(by_pull(a_record(), scratch=str(scratch)))
    yield gauge
    gauge.close()


async def test_a_scratch_file_that_was_deleted_by_hand_is_still_measured(gauge: Gauge, scratch: Path) -> None:
    file = scratch / "vda.qcow2"
    with file.open("ab") as qemu:
        assert (await gauge.read(None)).used == 3 * MIB
        file.unlink()
        qemu.write(b"x" * MIB)
        qemu.flush()
        assert (await gauge.read(None)).used == 4 * MIB
        assert "vda" not in gauge.unseen


async def test_a_scratch_file_that_was_gone_before_is_libvirt_s_to_tell_of(gauge: Gauge, scratch: Path) -> None:
    (scratch / "vda.qcow2").unlink()
    assert (await gauge.read(None)).used == 0
    assert "vda" in gauge.unseen


async def test_the_space_of_scratch_files_is_free_when_they_are_removed_and_the_gauge_is_closed(
    gauge: Gauge, scratch: Path
) -> None:
    await gauge.read(None)
    assert holds(scratch)
    gauge.close()
    assert not holds(scratch)
    await gauge.read(None)
    assert not holds(scratch), "a thread that was left behind opens nothing"


def holds(directory: Path) -> bool:
    """Whether this process has a file of the directory open."""
    opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return any(path.startswith(f"{directory}/") for path in opened)


async def test_a_fifo_or_a_link_in_the_place_of_a_scratch_file_is_not_waited_for_or_followed(
    gauge: Gauge, scratch: Path
) -> None:
    file = scratch / "vda.qcow2"
    file.unlink()
    os.mkfifo(file)
    await gauge.read(None)
    file.unlink()
    file.symlink_to("/etc/hostname")
    with pytest.raises(SpaceError):
        await Gauge(by_pull(a_record(), scratch=str(scratch))).read(None)


async def test_a_lost_write_is_told_as_long_as_the_gauge_is_read(gauge: Gauge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of it once, and giving up may take several tries."""
    assert not (await gauge.read(None)).is_short
    with monkeypatch.context() as failing:
        failing.setattr(writeback, "check", raise_io_error)
        await gauge.read(None)
    fill = await gauge.read(None)
    assert fill.is_short
    assert "vda.qcow2 is lost: Input/output error" in str(fill.failure)


def raise_io_error(_descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
