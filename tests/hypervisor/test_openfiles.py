"""What a process has open is told by what it is, not by its name."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from snapmount.hypervisor import openfiles

from ..rig import vm
from .test_writers import open_in_another_process


def test_a_file_is_open_under_any_of_its_names_and_what_has_come_to_its_place_is_not(tmp_path: Path) -> None:
    image, link, aside = (tmp_path / name for name in ("vda.img", "link", "aside"))
    image.write_bytes(bytes(512))
    link.symlink_to(image)
    with open_in_another_process(image) as pid:
        assert openfiles.not_open([str(image), str(link)], pid) == []
        image.rename(aside)
        image.write_bytes(bytes(512))
        assert openfiles.not_open([str(image), str(aside)], pid) == [str(image)]
    with pytest.raises(OSError, match=f"/proc/{pid}"):
        openfiles.not_open([str(image)], pid)


def test_a_block_device_is_open_under_any_of_its_nodes(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the test makes a loop device")
    image, node = tmp_path / "vda.img", tmp_path / "node"
    image.write_bytes(bytes(1 << 20))
    with contextlib.ExitStack() as stack:
        device = vm.loop_device(image, stack)
        os.mknod(node, 0o600 | stat.S_IFBLK, device.stat().st_rdev)
        with open_in_another_process(device) as pid:
            assert openfiles.not_open([str(device), str(node), str(image)], pid) == [str(image)]
