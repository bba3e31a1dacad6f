"""A file that is changed, replaced or removed is not what it was; one that is only read is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from snapmount.images import fingerprint

from ..rig import vm


def overwrite(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"y")


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("other"))
    path.with_name("other").rename(path)


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (overwrite, "has been written to"),
        (lambda path: os.truncate(path, 5), "has 5 bytes now, it had 9"),
        (replace, "is another file now"),
        (Path.unlink, "has been removed or renamed"),
        (lambda path: path.rename(path.with_name("other")), "has been removed or renamed"),
    ],
    ids=["written", "truncated", "replaced", "removed", "renamed"],
)
async def test_what_becomes_of_a_file_is_told(
    tmp_path: Path, do: Callable[[Path], object], told: str, autojump_clock: object
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"some data")
    known = [fingerprint.of(str(path)) for path in paths]

    async def do_it() -> None:
        await trio.sleep(3 * fingerprint.PERIOD_S)
        do(paths[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(do_it)
        assert await fingerprint.wait_changed(known) == f"{paths[1]} {told}"


def test_reading_and_giving_a_file_to_another_user_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"some data")
    known = fingerprint.of(str(path))
    path.read_bytes()
    path.chmod(0o600)  # as libvirt does when it starts a VM, and then finds that it cannot
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    assert fingerprint.change(known) is None


@pytest.mark.vm
def test_a_block_device_that_is_written_to_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(64 << 10))
    with ExitStack() as stack:
        device = vm.loop_device(tmp_path / "a", stack)
        known = fingerprint.of(str(device))
        device.read_bytes()
        assert fingerprint.change(known) is None
        subprocess.run(["dd", "if=/dev/urandom", f"of={device}", "count=1", "conv=fsync", "status=none"], check=True)
        assert fingerprint.change(known) == f"{device} has been written to"


@pytest.mark.vm
def test_after_a_reboot_a_file_is_what_it_was_and_of_a_block_device_nothing_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(64 << 10))
    with ExitStack() as stack:
        paths = [str(tmp_path / "a"), str(vm.loop_device(tmp_path / "a", stack))]
        known = [fingerprint.of(path) for path in paths]
        monkeypatch.setattr(fingerprint, "boot_id", lambda: "another")
        of_file, of_device = map(fingerprint.change, known)
    assert of_file is None
    assert of_device == f"the host has been restarted, and nothing tells whether {paths[1]} has been written to"
