"""What makes writes of scratch fail while there is room: a QEMU that refuses them, and file systems on less than they
show, or with a quota.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import vm

SOURCE = Path(__file__).with_name("failing_writes.c")
QEMU = "qemu-system-x86_64"


class Emulator:
    """A QEMU for VMs, whose writes of scratch files fail as long as it is told so."""

    def __init__(self, directory: Path) -> None:
        self._control = directory / "errno"
        library, self._program = directory / "failing_writes.so", directory / "qemu"
        command = ["gcc", "-shared", "-fPIC", "-O2", f'-DCONTROL="{self._control}"', "-o", library, SOURCE, "-ldl"]
        subprocess.run([str(word) for word in command], check=True)
        self._program.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {shutil.which(QEMU)} "$@"\n')
        self._program.chmod(0o755)
        self._control.touch()

    @property
    def xml(self) -> str:
        """For the devices of a VM."""
        return f"<emulator>{self._program}</emulator>"

    @contextlib.contextmanager
    def refusing(self, number: int) -> Iterator[None]:
        """Within the block, writes fail with this errno."""
        self._control.write_text(str(number))
        try:
            yield
        finally:
            self._control.write_text("")


@contextlib.contextmanager
def emulator() -> Iterator[Emulator]:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if enabled.exists() and enabled.read_text().strip() == "Y":
        pytest.skip("AppArmor lets libvirt start the QEMU of the distribution only")
    with tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-", dir=vm.IMAGES) as name:
        Path(name).chmod(0o755)
        yield Emulator(Path(name))


@contextlib.contextmanager
def thin_device(mib: int, there: int) -> Iterator[Path]:
    """A block device of so many MiB, of which so many are there, as in a thin pool: the rest cannot be written."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-")))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={there}M", "tmpfs", directory], check=True)
        stack.callback(subprocess.run, ["umount", str(directory)], check=True)
        with (directory / "image").open("wb") as f:
            f.truncate(mib * vm.MIB)
        yield vm.loop_device(directory / "image", stack)


@contextlib.contextmanager
def thin_file_system(mib: int, there: int) -> Iterator[Path]:
    """An ext4 file system on such a device."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(thin_device(mib, there))
        options = ["-m", "0", "-O", "^has_journal", "-N", "256"]  # little of its own
        subprocess.run(["mkfs.ext4", "-q", *options, device], check=True)
        yield _mounted(device, stack)


@contextlib.contextmanager
def with_quota(mib: int) -> Iterator[Path]:
    """A directory that holds so many MiB, though its file system shows more room: a btrfs subvolume with a quota."""
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("this host lacks btrfs-progs: run contrib/setup --test")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-", dir=vm.IMAGES)))
        with (directory / "image").open("wb") as f:
            f.truncate(512 * vm.MIB)
        subprocess.run(["mkfs.btrfs", "-q", directory / "image"], check=True, stdout=subprocess.DEVNULL)
        limited = _mounted(vm.loop_device(directory / "image", stack), stack) / "limited"
        for command in (
            ["quota", "enable", limited.parent],
            ["subvolume", "create", limited],
            ["qgroup", "limit", f"{mib}M", limited],
        ):
            subprocess.run(["btrfs", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        limited.chmod(0o755)
        yield limited


def _mounted(device: Path, stack: contextlib.ExitStack) -> Path:
    mountpoint = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-", dir=vm.IMAGES)))
    done = subprocess.run(["mount", device, mountpoint], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this host cannot mount it: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", str(mountpoint)], check=True)
    mountpoint.chmod(0o755)
    return mountpoint


def sync(directory: Path) -> None:
    """Let the kernel write back all that is in the page cache for a file system; whether it can is another matter."""
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(["sync", "-f", directory], check=True, capture_output=True)
