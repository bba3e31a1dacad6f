"""Decides where a snapshot's scratch goes and whether there is room for it; makes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....core.snapshot import Disk
from ....core.user import User
from ....errors import NotFoundError
from .. import space
from ..space import ScratchPolicy, Space
from . import devices, places

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """What the scratch is for."""

    vm: str
    disks: Sequence[Disk]
    origins: Sequence[str]  # the disks' image files
    user: User  # QEMU's
    devices_in_use: Mapping[str, str]  # block devices that cannot be scratch, and what they are


async def find(
    needs: Needs, directory: str | None, policy: ScratchPolicy, warn: Callable[[str], None]
) -> tuple[Path, ScratchPolicy]:
    """Below which directory the scratch files go, and the policy with the reason for it, where the user has named none.

    Raises SpaceError, NotFoundError or MissingError.
    """
    await _check_devices(needs, policy, warn)
    in_files = [disk for disk in needs.disks if not policy.device(disk.name)]
    worst = policy.remaining_bytes([(disk.size_bytes, 0) for disk in in_files])
    reserved = sum(policy.reserved_bytes(disk.size_bytes) for disk in in_files)
    allocated = sum(disk.size_bytes if disk.allocated_bytes is None else disk.allocated_bytes for disk in in_files)
    if directory:
        parent = Path(directory)
        free = await places.free_bytes(parent)
        _warn(warn, await places.warning_of(parent))
    else:
        place = await places.find(needs.origins, needs.user, reserved or worst, allocated)
        log.info("scratch files go below %s: %s", place.path, place.why)
        parent, policy = Path(place.path), replace(policy, place=place.why)
        free = await places.free_bytes(parent)
    if in_files:
        _warn(warn, space.judge(needs.vm, str(parent), Space(free, worst, allocated, reserved)))
    return parent, policy


async def _check_devices(needs: Needs, policy: ScratchPolicy, warn: Callable[[str], None]) -> None:
    disks = {disk.name: disk for disk in needs.disks}
    for name, device in policy.devices:
        if name not in disks:
            raise NotFoundError(
                f"{needs.vm}: --scratch-device names {name!r}; the disks of the snapshot are {', '.join(disks)}"
            )
        size = await devices.check(device, needs.devices_in_use)
        _warn(warn, space.judge_device(name, device, size, disks[name].size_bytes, policy))


def _warn(warn: Callable[[str], None], text: str | None) -> None:
    if text:
        warn(text)
