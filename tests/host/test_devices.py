"""The names by which block devices are known."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from snapmount.host import devices

UDEVADM = """#!/bin/sh
[ "$1 $2 $3" = "info --query=symlink --root" ] || exit 2
echo "$4" > "$0.asked"
exec cat "$0.answer"
"""


@pytest.fixture
def udevadm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that knows links."""
    path = tmp_path / "udevadm"
    path.write_text(UDEVADM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return path


def a_device() -> str:
    for path in Path("/dev").iterdir():
        if stat.S_ISBLK(path.lstat().st_mode):
            return str(path)
    pytest.skip("this host has no block device in /dev")


async def test_a_block_device_is_known_by_the_links_of_udev_too(udevadm: Path) -> None:
    device = a_device()
    await trio.Path(f"{udevadm}.answer").write_text("/dev/zvol/tank/vm1 /dev/disk/by-id/a\n")
    assert await devices.names(device) == (device, "/dev/disk/by-id/a", "/dev/zvol/tank/vm1")
    assert await trio.Path(f"{udevadm}.asked").read_text() == f"--name={device}\n"


async def test_where_udev_knows_nothing_there_is_its_own_name_alone(udevadm: Path) -> None:
    device = a_device()
    assert await devices.names(device) == (device,)  # there is no answer
    await trio.Path(udevadm).unlink()
    assert await devices.names(device) == (device,)


async def test_what_is_no_block_device_has_one_name(udevadm: Path, tmp_path: Path) -> None:
    for name in (str(udevadm), str(tmp_path / "none"), "rbd:vms/vm1"):
        assert await devices.names(name) == (name,)
    assert not await trio.Path(f"{udevadm}.asked").exists()
