"""The scratch files of a snapshot, one a disk: made beforehand, looked at while it lives, and removed.

libvirt could make them, but with the clusters of the disk's own image: where those are of 2 MiB, each small write of
the guest would wait for a copy of 2 MiB.  Ours have the smallest that QEMU copies, can be reserved, or lie on a block
device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import trio

from .. import blocking
from ..core import units
from ..core.snapshot import Disk
from ..core.user import User
from ..errors import SpaceError
from ..records import Record
from . import devices, directories, qcow2

HOST_S = 30.0


@dataclass(frozen=True)
class Used:
    """The scratch of a disk at one moment, in bytes."""

    used: int
    end: int  # its length: where QEMU writes next


def path(record: Record, disk: str) -> str:
    """The scratch file of a disk, or the block device that serves as such."""
    return record.terms.device(disk) or f"{record.scratch}/{disk}.qcow2"


async def make(record: Record, user: User) -> None:
    """Make the scratch files, empty, and reserve what the record's terms say.  Raises SpaceError or MissingError."""
    async with trio.open_nursery() as nursery:
        for disk in record.snapshot.disks:
            nursery.start_soon(_make, record, disk, user)


async def _make(record: Record, disk: Disk, user: User) -> None:
    device = record.terms.device(disk.name)
    if device:
        what = f"the scratch of {disk.name} on {device}"
        await qcow2.create(device, disk.size_bytes, None, backing=devices.mark(record.id), what=what)
        return
    file = path(record, disk.name)
    await qcow2.create(file, disk.size_bytes, user, what=f"the scratch file {file}")
    length = record.terms.reserved_bytes(disk.size_bytes)
    if length:
        await _reserve(file, length, user)


async def _reserve(file: str, length: int, user: User) -> None:
    """Allocate a file's space, also beyond its end, which stays: clusters that the qcow2 format calls allocated would
    hide the disk (fallocate(1), --keep-size).  As QEMU's user, whose directory it is: a link there leads root anywhere.
    """
    command = ["fallocate", "--keep-size", "--length", str(length), file]
    try:
        done = await blocking.run(HOST_S, command, **directories.as_user(user))
    except OSError as error:
        raise blocking.cannot_run("fallocate", error, "util-linux") from error
    except trio.TooSlowError:
        raise SpaceError(f"{file}: {units.size(length)} were not reserved within {HOST_S:g} s") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().rpartition(": ")[2]
        raise SpaceError(
            f"{units.size(length)} cannot be reserved for {file}: {why}",
            "--scratch-dir on ext4, XFS or btrfs, or do without --scratch-reserve",
        )


def look(record: Record) -> dict[str, Used]:
    """What the scratch files take now; those on block devices, and such as are gone, are not told of."""
    found = {}
    for disk in record.snapshot.disks:
        if not record.terms.device(disk.name):
            try:
                status = os.stat(path(record, disk.name))
            except FileNotFoundError:
                continue  # somebody has removed it, or the snapshot has ended
            found[disk.name] = Used(directories.written_bytes(status), status.st_size)
    return found


def remove(record: Record) -> None:
    """Remove the scratch directory, and what is ours on the block devices.  Idempotent.  Raises OSError."""
    for _, device in record.terms.devices:
        devices.wipe(device, record.id)
    directories.remove(Path(record.scratch))
