"""Block devices as scratch: refused where anything is on them, and cleared of what is ours at the end."""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import trio

from ....core import names, units
from ....errors import SpaceError
from ....host import blocking, execution

CHECK_S = 30.0
CLOSED_S = 5.0
POLL_S = 0.05
MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQI")  # magic, version, offset and length of the backing file's name
CLEARED_BYTES = units.MIB


def mark(snapshot_id: str) -> str:
    """What the qcow2 header names as its backing file, which QEMU is told not to look at: the proof that it is ours."""
    return f"snapmount-{snapshot_id}"


async def check(device: str, disks: Mapping[str, str]) -> int:
    """The size in bytes of a block device that nothing is on and nobody uses.

    `disks` are the paths of the VMs' disks, with what they are.  Raises SpaceError, which names what was found, or
    MissingError.
    """
    try:
        size = await blocking.call(CHECK_S, _open_alone, device)
        await blocking.call(CHECK_S, _refuse_disks, device, disks)
        found = await _signatures(device)
    except trio.TooSlowError:
        raise SpaceError(f"the scratch device {device} did not answer within {CHECK_S:g} s") from None
    if found:
        raise SpaceError(
            f"the scratch device {device} is not empty: it carries {', '.join(found)}",
            f"{names.command('wipefs', '-a', device)}   (which destroys that)",
        )
    if await blocking.call(CHECK_S, _backing_name, device) is not None:
        raise SpaceError(
            f"the scratch device {device} is not empty: it carries a qcow2 image",
            f"{names.command('dd', 'if=/dev/zero', f'of={device}', 'bs=1M', 'count=1')}   (which destroys it)",
        )
    return size


def _open_alone(device: str) -> int:
    """O_EXCL fails for a block device that is mounted or part of another one (open(2))."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        in_use = error.errno == errno.EBUSY
        why = "is in use: it is mounted, or part of something else" if in_use else f"cannot be used: {error.strerror}"
        raise SpaceError(
            f"the scratch device {device} {why}", names.command("lsblk", device) if in_use else None
        ) from None
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise SpaceError(f"the scratch device {device} is not a block device")
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def size(device: str) -> int:
    """The size of a block device in bytes.  Raises OSError."""
    with Path(device).open("rb", buffering=0) as f:
        return f.seek(0, os.SEEK_END)


def _refuse_disks(device: str, disks: Mapping[str, str]) -> None:
    number = os.stat(device).st_rdev
    for path, what in disks.items():
        try:
            status = os.stat(path)
        except OSError:
            continue  # nobody uses it now
        if stat.S_ISBLK(status.st_mode) and status.st_rdev == number:
            raise SpaceError(f"the scratch device {device} is {what}")


async def _signatures(device: str) -> list[str]:
    """What wipefs(8) knows of on the device: file systems, partition tables, members of arrays and volume groups."""
    command = ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", device]
    found = await execution.output(command, CHECK_S, f"the scratch device {device} cannot be read", SpaceError)
    return sorted(set(found.decode(errors="replace").split()))


def _backing_name(device: str) -> str | None:
    """The backing file that a qcow2 header on the device names, '' for none; None if there is no such header."""
    with Path(device).open("rb", buffering=0) as f:
        head = f.read(units.MIB)
    magic, _, offset, length = HEADER.unpack_from(head.ljust(HEADER.size, b"\0"))
    return head[offset : offset + length].decode(errors="replace") if magic == MAGIC else None


def is_ours(device: str, snapshot_id: str) -> bool:
    """Whether the device is there and has the snapshot's qcow2 header.  Raises OSError."""
    try:
        return _backing_name(device) == mark(snapshot_id)
    except FileNotFoundError:
        return False


def wipe(device: str, snapshot_id: str) -> None:
    """Clear the device of the snapshot's qcow2 header; one that is gone, or has another, is left as it is.

    libvirt tells of the job's end before QEMU has closed its scratch, and so has written what it has cached of it: that
    is waited for.  Raises OSError.
    """
    if not is_ours(device, snapshot_id):
        return
    end_s = time.monotonic() + CLOSED_S
    while _is_open(os.stat(device).st_rdev) and time.monotonic() < end_s:
        time.sleep(POLL_S)
    descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, bytes(min(CLEARED_BYTES, os.lseek(descriptor, 0, os.SEEK_END))), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_open(number: int) -> bool:
    """Whether another process has the block device of that number open (proc_pid_fd(5))."""
    ours = f"/proc/{os.getpid()}/"
    links = (link for link in Path("/proc").glob("[0-9]*/fd/*") if not str(link).startswith(ours))
    return any(_leads_to(link, number) for link in links)


def _leads_to(link: Path, number: int) -> bool:
    try:
        if not os.readlink(link).startswith("/dev/"):
            return False  # and is not looked at, which may block
        status = os.stat(link)
    except OSError:
        return False  # it has been closed meanwhile
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == number
