"""The scratch files of a snapshot, one a disk: made beforehand, looked at while it lives, and removed.

libvirt could make them, but with the clusters of the disk's own image: where those are of 2 MiB, each small write of
the guest would wait for a copy of 2 MiB.  Ours have the smallest that QEMU copies, can be reserved, or lie on a block
device.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from ....core import units
from ....core.snapshot import Disk
from ....core.user import User
from ....errors import SpaceError
from ....host import descriptors, execution, usage
from ....hypervisor import directories
from ....images import qcow2
from ....records.kept import Kept
from ....records.record import Record
from .. import space, state
from . import devices, writeback

HOST_S = 30.0


@dataclass(frozen=True)
class Used:
    """The scratch of a disk at one moment, in bytes."""

    used: int
    end: int  # its length: where QEMU writes next


def path(record: Record, disk: str) -> str:
    """The scratch file of a disk, or the block device that serves as such."""
    return state.of(record).policy.device(disk) or f"{state.of(record).scratch}/{disk}.qcow2"


async def make(record: Record, user: User) -> None:
    """Make the scratch files, empty, and reserve what the record's policy says.  Raises SpaceError or MissingError."""
    async with trio.open_nursery() as nursery:
        for disk in record.snapshot.disks:
            nursery.start_soon(_make, record, disk, user)


async def _make(record: Record, disk: Disk, user: User) -> None:
    device = state.of(record).policy.device(disk.name)
    if device:
        what = f"the scratch of {disk.name} on {device}"
        await qcow2.create(device, disk.size_bytes, None, backing=devices.mark(record.id), what=what)
        return
    file = path(record, disk.name)
    await qcow2.create(file, disk.size_bytes, user, what=f"the scratch file {file}")
    length = state.of(record).policy.reserved_bytes(disk.size_bytes)
    if length:
        await _reserve(file, length, user)


async def _reserve(file: str, length: int, user: User) -> None:
    """Allocate a file's space, also beyond its end, which stays: clusters that the qcow2 format calls allocated would
    hide the disk (fallocate(1), --keep-size).  As QEMU's user, whose directory it is: a link there leads root anywhere.
    """
    command = ["fallocate", "--keep-size", "--length", str(length), file]
    what = f"{units.size(length)} cannot be reserved for {file}"
    remedy = "--scratch-dir on ext4, XFS or btrfs, or do without --scratch-reserve"
    await execution.output(command, HOST_S, what, SpaceError, remedy, **directories.as_user(user))


class Opened:
    """The scratch files and devices of a snapshot, held open: so one that somebody removes, while QEMU goes on writing
    to it, is still measured, and writes that the kernel could not finish are heard of.

    Not to be held when the files are removed: they would go on taking their space.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._descriptors: dict[str, int] = {}  # by disk
        self._is_closed = False
        self.failure: str | None = None  # what has been lost, in words; from then on it is

    def look(self) -> dict[str, Used]:
        """What the scratch files take now, and whether something is lost of them or of the devices.

        Devices, and files that were gone before they could be opened, are not told of.  Raises OSError.
        """
        found = {}
        for disk in self._record.snapshot.disks:
            try:
                descriptor = self._open(disk.name)
            except FileNotFoundError:
                continue
            self._check(disk.name, descriptor)
            if not state.of(self._record).policy.device(disk.name):
                status = os.fstat(descriptor)
                found[disk.name] = Used(usage.written_bytes(status), status.st_size)
        return found

    def _open(self, disk: str) -> int:
        """QEMU's user can put anything in the place of its files: follow no link, and wait for no FIFO."""
        if disk not in self._descriptors:
            if self._is_closed:  # this is a thread that was left behind
                raise FileNotFoundError(errno.ENOENT, "nobody looks any more")
            is_device = state.of(self._record).policy.device(disk) is not None
            self._descriptors[disk] = descriptors.opened(path(self._record, disk), follow=is_device)
        return self._descriptors[disk]

    def _check(self, disk: str, descriptor: int) -> None:
        try:
            writeback.check(descriptor)
        except OSError as error:
            self.failure = f"what was written to {path(self._record, disk)} is lost: {error.strerror}"

    def measures(self, disk: str) -> bool:
        """Whether look() tells of it."""
        return disk in self._descriptors and not state.of(self._record).policy.device(disk)

    def close(self) -> None:
        """Let them go, for good."""
        self._is_closed = True
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def is_any_nearly_full(record: Record, paths: Iterable[str]) -> bool:
    """Whether one of those files, such as are not the snapshot's, is on a file system with little space left.

    Those that cannot be looked at, block devices and what is mounted read-only are left out.
    """
    for path in paths:
        try:
            is_own = stat.S_ISREG(os.stat(path).st_mode) and not path.startswith(f"{state.of(record).scratch}/")
            status = os.statvfs(path)
        except OSError:
            continue
        is_read_only = bool(status.f_flag & os.ST_RDONLY)
        if is_own and not is_read_only and status.f_bavail * status.f_frsize < space.FLOOR_BYTES:
            return True
    return False


def remove(kept: Kept) -> None:
    """Remove the scratch directory, and what is ours on the block devices.  Idempotent.  Raises OSError."""
    for _, device in state.of(kept).policy.devices:
        devices.wipe(device, kept.id)
    directories.remove(state.of(kept).directory)
