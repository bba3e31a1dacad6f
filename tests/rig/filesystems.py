"""Small file systems for tests, on loop devices, and what fills them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from . import vm

# How each kind is made, and Debian's package that has the program; XFS wants 300 MiB.
MKFS = {
    "ext4": (["-m", "0"], "e2fsprogs"),
    "ext2": (["-m", "0"], "e2fsprogs"),
    "xfs": (["-m", "reflink=1"], "xfsprogs"),
    "btrfs": ([], "btrfs-progs"),
}


@contextlib.contextmanager
def mounted(mib: int, kind: str = "ext4", name: str = vm.PREFIX, options: Sequence[str] = ()) -> Iterator[Path]:
    """A file system of that many MiB that QEMU's user can reach; kind is tmpfs, or one of MKFS, with these options in
    place of the usual ones.  The directory that it is in has a name that begins with `name`.

    VMs that are started before do not see it.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-", dir=vm.IMAGES)))
        directory.chmod(0o755)
        mountpoint = directory / kind
        mountpoint.mkdir()
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={mib}M", "tmpfs", str(mountpoint)]
        else:
            image = directory / "image"
            with image.open("wb") as f:
                f.truncate(mib * vm.MIB)
            make(image, kind, options)
            command = ["mount", str(vm.loop_device(image, stack)), str(mountpoint)]
        subprocess.run(command, check=True)
        stack.callback(subprocess.run, ["umount", str(mountpoint)], check=True)
        mountpoint.chmod(0o755)
        yield mountpoint


def make(image: Path, kind: str, options: Sequence[str] = ()) -> None:
    """Make a file system in that file or device."""
    usual, package = MKFS[kind]
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"this host lacks {package}: run contrib/setup --test")
    subprocess.run([f"mkfs.{kind}", "-q", *(options or usual), image], check=True, capture_output=True)


def remove_left_over(directory: Path) -> None:
    """Remove what a killed program has left of mounted()."""
    for kind in (*MKFS, "tmpfs"):
        subprocess.run(["umount", "-q", "-l", directory / kind])
    devices = subprocess.run(["losetup", "-j", directory / "image"], capture_output=True, text=True).stdout
    for line in devices.splitlines():
        subprocess.run(["losetup", "-d", line.partition(":")[0]])
    shutil.rmtree(directory)


@contextlib.contextmanager
def small_at(directory: Path, kib: int) -> Iterator[None]:
    """A directory that is a file system of that many KiB, in memory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "snapmount-test", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
        directory.rmdir()


@contextlib.contextmanager
def out_of_sight(*mountpoints: Path) -> Iterator[None]:
    """These file systems are not mounted in the block, as before they are after a restart of the host."""
    mounts = [line.split()[:2] for line in Path("/proc/mounts").read_text().splitlines()]
    devices = {mountpoint: device for device, mountpoint in mounts}
    for mountpoint in mountpoints:
        subprocess.run(["umount", mountpoint], check=True)
    try:
        yield
    finally:
        for mountpoint in mountpoints:
            subprocess.run(["mount", devices[str(mountpoint)], mountpoint], check=True)


@contextlib.contextmanager
def read_only(mountpoint: Path) -> Iterator[None]:
    """Nothing can be written there in the block; nobody may have a file open to write to it."""
    subprocess.run(["mount", "-o", "remount,ro", mountpoint], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", mountpoint], check=True)


def free_bytes(directory: Path) -> int:
    """What an ordinary user may still write there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def filled(directory: Path, leave: int) -> Iterator[None]:
    """Somebody else has filled the file system, but for so many bytes."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix="somebody-else-") as file:
        length = 0
        for step in (vm.MIB, 65536, 4096):
            with contextlib.suppress(OSError):  # what is left cannot be had in such pieces
                while free_bytes(directory) >= leave + step:
                    os.posix_fallocate(file.fileno(), length, step)
                    length += step
        yield
