"""Scratch space: how much a snapshot may need, whether that will do, and when the snapshot must be given up.

A full scratch file system makes QEMU pause the guest or fail its writes.  So the snapshot ends while there still is
space: at its limit, or when less is free than fills up in the time that giving up may take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ...core import filling, limits, names, units
from ...core.filling import Pool
from ...errors import SpaceError

CLUSTER_BYTES = 64 * units.KIB  # QEMU's copy-before-write copies no less, and more of a scratch file with larger ones
FLOOR_BYTES = limits.FLOOR_BYTES


@dataclass(frozen=True)
class ScratchPolicy:
    """How a snapshot uses scratch space, as its user wants it."""

    limit_bytes: int | None = None  # the most that all its scratch files may take
    is_reserved: bool = False  # allocated beforehand
    devices: tuple[tuple[str, str], ...] = ()  # disks whose scratch is a block device, with its path
    place: str | None = None  # why the directory was chosen; None: the user did

    def device(self, disk: str) -> str | None:
        """The block device that is the disk's scratch."""
        return dict(self.devices).get(disk)

    def worst_bytes(self, disk_bytes: int) -> int:
        """The most that the scratch of a disk of this size takes, in this snapshot."""
        most = qcow2_bytes(disk_bytes)
        return most if self.limit_bytes is None else min(most, self.limit_bytes)

    def reserved_bytes(self, disk_bytes: int) -> int:
        """What is allocated beforehand for a scratch file: all it may take, with what it may take beyond the limit
        until the snapshot is given up.
        """
        if not self.is_reserved:
            return 0
        most = qcow2_bytes(disk_bytes)
        return most if self.limit_bytes is None else min(most, self.limit_bytes + FLOOR_BYTES)

    def remaining_bytes(self, disks: Iterable[tuple[int, int]]) -> int:
        """What scratch files may still take that is not theirs yet, given each disk's size and what of it is used."""
        disks = list(disks)
        most = sum(qcow2_bytes(size) for size, _ in disks)
        used = sum(used for _, used in disks)
        return max(0, (most if self.limit_bytes is None else min(most, self.limit_bytes)) - used)


DEFAULT_POLICY = ScratchPolicy()


def qcow2_bytes(disk_bytes: int) -> int:
    """The length of a qcow2 file with clusters of 64 KiB, all of them allocated.

    https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst : a header, 8 bytes a cluster in L2
    tables, 8 bytes an L2 table in the L1 table, 2 bytes a cluster in refcount blocks, 8 bytes a block in their table.
    """
    clusters = _clusters(disk_bytes)
    l2_tables = _clusters(clusters * 8)
    counted = 1 + clusters + l2_tables + _clusters(l2_tables * 8)
    total = counted
    while True:  # what counts the references is counted itself
        blocks = _clusters(total * 2)
        needed = counted + blocks + max(1, _clusters(blocks * 8))
        if needed == total:
            return total * CLUSTER_BYTES
        total = needed


def _clusters(length: int) -> int:
    return -(-length // CLUSTER_BYTES)


# -- before the snapshot -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """What a place for scratch files offers and what the snapshot may need there, all in bytes."""

    free: int
    worst: int  # the most that the scratch files take
    allocated: int  # what of the disks is allocated
    reserved: int = 0  # what is allocated beforehand

    @property
    def floor(self) -> int:
        """The least free space with which a snapshot is taken: a tenth of the allocated size, but no more than the
        worst case, and at least 64 MiB.
        """
        return max(FLOOR_BYTES, min(self.allocated // 10, self.worst))


def judge(vm: str, place: str, space: Space) -> str | None:
    """Refuse a place that is too small (SpaceError); return a warning where the worst case would not fit, else None."""
    remedy = names.command("snapmount", vm, "MOUNTPOINT", "--scratch-dir", "DIRECTORY")
    if space.reserved:
        if space.free < space.reserved:
            raise SpaceError(
                f"{vm}: {place} has {units.size(space.free)} free; "
                f"--scratch-reserve takes {units.size(space.reserved)} there",
                f"{remedy}   (a directory with more space, or a --scratch-limit)",
            )
        return None
    if space.free < space.floor:
        raise SpaceError(
            f"{vm}: {place} has {units.size(space.free)} free for the scratch files; "
            f"at least {units.size(space.floor)} must be free (a tenth of the disks' allocated size, and 64 MiB)",
            f"{remedy}   (a directory with more space)",
        )
    if space.free < space.worst:
        return (
            f"{place} has {units.size(space.free)} free, and the scratch files may need "
            f"{units.size(space.worst)} if the guest overwrites all of its disks while the snapshot lives; "
            "the snapshot is given up before the space runs out"
        )
    return None


def judge_device(disk: str, device: str, device_bytes: int, disk_bytes: int, policy: ScratchPolicy) -> str | None:
    """As judge(), of a block device that is the scratch of one disk."""
    worst = policy.worst_bytes(disk_bytes)
    least = min(FLOOR_BYTES, worst)
    if device_bytes < least:
        raise SpaceError(
            f"the scratch device {device} has {units.size(device_bytes)}; {disk} needs at least {units.size(least)}",
            f"--scratch-device {disk}=DEVICE   (a larger one)",
        )
    if device_bytes < worst:
        return (
            f"the scratch device {device} has {units.size(device_bytes)}, and {disk} may need {units.size(worst)} "
            "if the guest overwrites all of it; the snapshot is given up before the space runs out"
        )
    return None


# -- while it lives ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """The scratch space of a snapshot at one moment."""

    used: int  # bytes
    bytes_per_s: float  # its growth
    policy: ScratchPolicy
    pools: tuple[Pool, ...]
    is_guest_stopped: bool = False  # the guest is paused by an error of its disks
    failure: str | None = None  # what has failed of it, in words

    @property
    def headroom(self) -> int | None:
        """The bytes that may still be used before the snapshot is given up; None if that cannot happen."""
        rooms = [pool.headroom for pool in self.pools]
        limit = self.policy.limit_bytes
        rooms.append(None if limit is None else limit - self.used)
        return min((room for room in rooms if room is not None), default=None)

    @property
    def left_s(self) -> float | None:
        """The seconds left at the present rates, those of others who fill the same places too; None if it does not
        end.
        """
        limit = self.policy.limit_bytes
        rooms = [(pool.headroom, max(pool.bytes_per_s, self.bytes_per_s)) for pool in self.pools]
        rooms.append((None if limit is None else limit - self.used, self.bytes_per_s))
        return min((max(0, room) / growth for room, growth in rooms if room is not None and growth >= 1), default=None)

    @property
    def wait_s(self) -> float:
        """How long one may look away: till a fraction of the room is used, also where the guest begins anew."""
        return filling.wait_s(self.headroom, self.pools)

    @property
    def short_pot(self) -> Pool | None:
        """The place that has run out of space, or is about to."""
        for pool in self.pools:
            if pool.free < pool.reserve or (self.is_guest_stopped and pool.is_nearly_full):
                return pool
        return None

    @property
    def is_short(self) -> bool:
        """Whether the snapshot must be given up now."""
        return bool(self.failure) or self._is_at_limit or self.short_pot is not None

    @property
    def _is_at_limit(self) -> bool:
        return self.policy.limit_bytes is not None and self.used >= self.policy.limit_bytes

    def why_give_up(self, now: datetime) -> str:
        """The reason to give up a snapshot that is short of space, in words that follow a colon."""
        figures = f"at {now:%Y-%m-%d %H:%M:%S} UTC, growing {units.rate(self.bytes_per_s)}"
        if self.failure:
            return f"scratch space failed ({self.failure}; {units.size(self.used)} used {figures})"
        if self._is_at_limit:
            limit = units.size(self.policy.limit_bytes or 0)
            return f"scratch limit reached ({units.size(self.used)} of {limit} {figures})"
        pool = self.short_pot
        left = f"{units.size(max(0, pool.free))} left on {pool.name}, " if pool else ""
        return f"scratch space ran out ({left}{units.size(self.used)} used {figures})"


def thresholds(ends: Mapping[str, int], headroom: int) -> dict[str, int]:
    """For each scratch file, which end where `ends` says, the length at which to look again.

    However the guest's writes are spread over them, one grows to it before the room is used up.
    """
    share = max(headroom // max(1, len(ends)), CLUSTER_BYTES)
    return {disk: end + share for disk, end in ends.items()}
