"""`umount` refuses while programs use the mount, and says which; by force it ends it, lazily it lets them read on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from snapmount.host import mounts
from snapmount.lifecycle import readers
from snapmount.records.store import Store
from snapmount.sources import kinds

from ..rig import traces, vm
from ..rig.command import refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm

# Maps a page of a file, and closes the file; Python's mmap would keep it open.
MAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
opened = os.open(sys.argv[1], os.O_RDONLY)
assert libc.mmap(None, ctypes.c_size_t(4096), 1, 2, opened, ctypes.c_long(0)) != ctypes.c_void_p(-1).value
os.close(opened)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def shared_paused(libvirt: None) -> Iterator[vm.VM]:
    with vm.running(f"{vm.PREFIX}-read", [vm.Disk("vda")], paused=True) as paused:
        yield paused


@pytest.fixture
def paused(shared_paused: vm.VM, clean: None) -> vm.VM:
    """A VM whose guest does nothing."""
    return shared_paused


@contextlib.contextmanager
def sleeping(**options: object) -> Iterator[int]:
    """A process that does nothing; what it is started with is in use by it."""
    with subprocess.Popen(["sleep", "1000"], **options) as process:  # type: ignore[call-overload]
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def telling(command: list[str]) -> Iterator[int]:
    """A process that has told that it is where it shall be."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def is_mounted(path: Path) -> bool:
    return any(mount.path == str(path) for mount in mounts.current())


def test_a_mount_that_programs_use_is_busy(paused: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(paused.name, mountpoint)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context((mountpoint / "vda.raw").open("rb"))
        users = [stack.enter_context(sleeping(cwd=mountpoint)), stack.enter_context(sleeping(stdin=opened))]
        said = refused("umount", mountpoint, code=4)
        assert said.startswith(f"snapmount: {mountpoint} is busy: ")
        for pid in users:
            assert f"sleep (process {pid})" in said
        assert f"(process {os.getpid()})" in said
        assert f"try: snapmount umount --lazy {mountpoint}" in said
        assert is_mounted(mountpoint)
        assert opened.read(512), "nothing has happened to its readers"
    assert snapmount("umount", mountpoint).stdout == f"snapshot {taken['id']} of {paused.name} is ended\n"
    assert traces.found() == []


def test_a_program_that_has_a_file_mapped_or_sees_the_mount_elsewhere_uses_it(paused: vm.VM, mountpoint: Path) -> None:
    snapmount(paused.name, mountpoint)
    record = Store.of_user(kinds.check).find(paused.name)
    assert trio.run(readers.of, record) == [], "neither the server nor we, who have only looked"
    elsewhere = f"mount --bind {mountpoint} /mnt && cd /mnt && echo there && exec sleep 1000"
    with (
        telling([sys.executable, "-c", MAP, str(mountpoint / "vda.raw")]) as maps,
        telling(["unshare", "--mount", "sh", "-c", elsewhere]) as sees_it_elsewhere,
    ):
        found = [reader.pid for reader in trio.run(readers.of, record)]
        assert found == sorted([maps, sees_it_elsewhere])
    assert "is ended" in snapmount("umount", mountpoint).stdout


def test_by_force_it_ends_and_its_readers_get_errors(paused: vm.VM, mountpoint: Path) -> None:
    snapmount(paused.name, mountpoint)
    with (mountpoint / "vda.raw").open("rb", buffering=0) as opened:
        document = snapmount_json("umount", "--force", mountpoint)
        assert (document["deleted"], document["readers"]) == (True, [])
        with pytest.raises(OSError, match=r"Transport endpoint|Input/output|Software caused"):
            opened.read(512)
    assert traces.found() == []


def test_lazily_it_goes_from_its_mountpoint_and_ends_with_its_last_reader(paused: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(paused.name, mountpoint)
    whole = hashlib.sha256((mountpoint / "vda.raw").read_bytes()).digest()
    with (mountpoint / "vda.raw").open("rb") as opened:
        document = snapmount_json("umount", "--lazy", mountpoint)
        assert not is_mounted(mountpoint)
        assert os.listdir(mountpoint) == []
        reading = [each["pid"] for each in document["readers"]]
        assert (document["id"], document["deleted"], reading) == (taken["id"], False, [os.getpid()])
        assert snapmount_json("list")[0]["state"] == "active"
        assert hashlib.sha256(opened.read()).digest() == whole
    wait_for(lambda: not traces.found(), "it has ended")
    assert not paused.has_job()


def test_lazily_it_ends_at_once_where_nobody_reads(paused: vm.VM, mountpoint: Path) -> None:
    snapmount(paused.name, mountpoint)
    assert "is ended" in snapmount("umount", "-l", mountpoint).stdout
    assert traces.found() == []


def test_one_that_is_still_read_can_be_deleted(paused: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(paused.name, mountpoint)
    with (mountpoint / "vda.raw").open("rb"):
        said = snapmount("umount", "--lazy", mountpoint).stdout
        assert said.startswith(f"snapshot {taken['id']} of {paused.name} is no longer mounted at {mountpoint}; it ends")
        assert f"(process {os.getpid()})" in said
        snapmount("delete", taken["id"][:4])
        assert traces.found() == []
