"""Clones logical volumes (lvm(8)) by lvm2's own snapshots, which live on their own: in VG/LV-snapmount-ID, tagged
snapmount-ID, read-only.

Of a thin volume it is a thin snapshot (lvmthin(7)), of any other one a classic snapshot of limited size, which the
kernel gives up when that is full.

What keeps this host away from what guests have within: lvm2 looks for physical volumes in no logical volume
(scan_lvs in lvm.conf(5), 0 by default; we refuse otherwise, unless there is a devices file, which lists what it looks
at), so it finds no volume group of a guest's, nor does udev by it; a thin snapshot is activated by nobody but us
(--setactivationskip), a classic one with its origin; and neither can be written to.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from ..core import document, names, units
from ..core.extents import Extent
from ..errors import LeftoverError, SnapmountError, SpaceError, StateError, UnreachableError
from ..host import blocking
from ..host.processes import Process
from . import devicemapper, lvmcommands, lvmreport, lvmroom, shapes, thindelta
from .devicemapper import Used
from .driver import Clone, ClonesRoom, Offer, Room, Task
from .lvmreport import Volume
from .lvmroom import OwnRoom
from .shapes import LvmKept

__all__ = [
    "activate",
    "by_hand",
    "changed",
    "create",
    "plan",
    "prepare",
    "remove",
    "rooms",
    "why_lost",
    "why_not",
]

NAME = "lvm"
# Measured, in units of what lvs takes: lvm2 looks at all disks in each of its commands, and udev's part is as slow.
THIN_LOOKS, CLASSIC_LOOKS = 2, 6
PAUSE_S = 0.05  # for what is written to the disks
SLOW_S = 0.3
LOOK_S = 30.0
UNFINISHED_S = 60.0
POLL_S = 0.1
_NAME_MAX = 102  # of 127 that device mapper has: less our part, in which hyphens are doubled, and "-cow"


async def why_not(origin: str) -> str | None:
    """Why not, such as 'is not a logical volume'; also if lvm2 is missing, with the command that installs it."""
    try:
        if not await blocking.on_path(origin, LOOK_S, Path(origin).is_block_device):
            return "is not a block device"
        device = await devicemapper.at(origin)
        if device is None or not device.uuid.startswith("LVM-"):
            return "is not a logical volume"
        if os.geteuid() != 0:
            return "is a logical volume, of which root alone can take a snapshot"
        volume = await _volume_at(origin)
        return lvmreport.refusal(volume) or await _pool_refusal(volume) or await _scan_refusal()
    except SnapmountError as error:
        return f"{error.message} (try: {error.remedy})" if error.remedy else error.message


async def plan(task: Task) -> Sequence[Offer]:
    """A snapshot for each of the volumes.  Raises SpaceError if there is no room for a classic one, StateError."""
    begun_s = time.monotonic()
    volumes = [await _volume_at(origin) for origin in task.origins]
    look_s = (time.monotonic() - begun_s) / max(1, len(volumes))
    classic_in_group = Counter(volume.group.name for volume in volumes if not volume.is_thin)
    offers = []
    for origin, volume in zip(task.origins, volumes, strict=True):
        room = None if volume.is_thin else lvmroom.judged(volume, classic_in_group[volume.group.name])
        clone = _clone(origin, volume, room, task)
        # Not concurrent: lvm2 locks a group, so its snapshots are taken one by one.
        pause_s = look_s * (THIN_LOOKS if volume.is_thin else CLASSIC_LOOKS) + PAUSE_S
        pays = _guest_pays(volume, room)
        offers.append(Offer(clone, pause_s, _remedy(look_s), pays, is_comparable=volume.is_thin))
    return offers


async def prepare(clone: Clone) -> None:
    """Nothing is to be done before the pause: lvm2 makes and allocates a snapshot in one step."""


async def create(clone: Clone) -> None:
    """Take it.  Raises StateError."""
    snapshot = _snapshot(clone)
    await lvmcommands.change(creation(snapshot), f"a snapshot of {snapshot.group}/{snapshot.origin} cannot be taken")


async def activate(clone: Clone) -> Clone:
    """Activate it, and open it to the reader.  Raises StateError if it is gone or another one, UnreachableError if
    its volume group cannot be looked at or it cannot be activated.
    """
    snapshot = _snapshot(clone)
    what = f"{snapshot} cannot be activated"
    volume = await lvmcommands.find(snapshot.group, snapshot.name, what, UnreachableError)
    if volume is None:
        raise StateError(f"the snapshot {snapshot} is there no more")
    if snapshot.device_uuid not in ("", volume.device_uuid):
        raise StateError(f"{snapshot} is another volume now")
    if await devicemapper.at(snapshot.path) is None:
        await lvmcommands.change(
            ["lvchange", "--yes", "--activate", "y", "--ignoreactivationskip", str(snapshot)],
            what,
            UnreachableError,
        )
    activated = replace(snapshot, device_uuid=volume.device_uuid)
    lost = await _why_lost(activated)
    if lost:
        raise StateError(lost)
    await blocking.on_path(snapshot.path, LOOK_S, _open_to_reader, snapshot, done="opened to QEMU")
    return replace(clone, kept=document.to_document(activated))


async def why_lost(clone: Clone) -> str | None:
    """Why it is lost, such as that a classic snapshot is full.  Raises StateError if that cannot be told."""
    return await _why_lost(_snapshot(clone))


async def rooms(clone: Clone) -> Sequence[Room]:
    """The thin pool's data and metadata, or a classic snapshot's own room, before it is taken the planned one;
    none if that never gets full.  Raises SpaceError.
    """
    snapshot = _snapshot(clone)
    return await (_pool_rooms(snapshot) if snapshot.pool else _own_room(snapshot))


async def changed(older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
    """What differs between two thin snapshots, block by block of their pool.  Raises StateError, also for classic
    snapshots, which cannot be compared.
    """
    first, second = _snapshot(older), _snapshot(newer)
    if not first.pool or (first.group, first.pool) != (second.group, second.pool):
        raise StateError(f"{first} and {second} cannot be compared: they are not thin snapshots of one pool")
    return await thindelta.changed(first.group, first.pool, first.name, second.name)


async def remove(clone: Clone) -> None:
    """Remove it, if its name and tag are ours.  Raises LeftoverError."""
    snapshot = _snapshot(clone)
    what = f"the snapshot {snapshot} cannot be removed"
    await _creation_ended(snapshot, what)
    volume = await lvmcommands.find(snapshot.group, snapshot.name, what, LeftoverError)
    if volume is None:
        return
    if snapshot.tag not in volume.tags:
        raise LeftoverError(f"{what}: it lacks the tag {snapshot.tag}, so it may not be ours")
    if thindelta.TAG in volume.tags:
        try:
            await thindelta.release(snapshot.group, snapshot.pool, what)
        except StateError as error:
            raise LeftoverError(error.message, error.remedy) from error
    # The selection is judged under the lock of the group, so nothing but ours can go.
    ours = f'lv_name="{snapshot.name}" && lv_tags={{"{snapshot.tag}"}}'
    await lvmcommands.change(["lvremove", "--yes", "--select", ours, snapshot.group], what, LeftoverError)


def by_hand(clone: Clone) -> Sequence[str]:
    """The lvremove(8) that does it."""
    return [names.command("lvremove", "--yes", str(_snapshot(clone)))]


# -- what is made ------------------------------------------------------------------------------------------------------


def _snapshot(clone: Clone) -> LvmKept:
    return shapes.of(LvmKept, clone)


def _clone(origin: str, volume: Volume, room: OwnRoom | None, task: Task) -> Clone:
    tag = names.directory(task.snapshot_id)
    snapshot = LvmKept(
        volume.group.name,
        snapshot_name(volume, tag),
        volume.name,
        volume.pool if volume.is_thin else "",
        room.size_bytes if room else 0,
        room.is_enough if room else False,
        tag,
        task.reader.uid,
        task.reader.gid,
    )
    kept: Mapping[str, Any] = document.to_document(snapshot)
    return Clone(NAME, (origin,), (snapshot.path,), kept)


def snapshot_name(volume: Volume, tag: str) -> str:
    """LV-snapmount-ID; of a long name the beginning, with what tells the volume from others.  Raises StateError."""
    group, name = volume.group.name, volume.name
    if len(devicemapper.name(group, name)) <= _NAME_MAX:
        return f"{name}-{tag}"
    unique = volume.device_uuid[-6:]
    while name and len(devicemapper.name(group, f"{name}.{unique}")) > _NAME_MAX:
        name = name[:-1]
    if not name:
        raise StateError(f"the name of the volume group {group} is too long for snapshots in it")
    return f"{name}.{unique}-{tag}"


def _device(snapshot: LvmKept) -> str:
    """Its name for device mapper."""
    return devicemapper.name(snapshot.group, snapshot.name)


def creation(snapshot: LvmKept) -> list[str]:
    """The lvcreate(8) that takes it.  A thin snapshot is not activated, so no device of it is to be waited for."""
    command = ["lvcreate", "--yes", "--snapshot", "--permission", "r"]
    command += ["--setactivationskip", "y", "--noudevsync"] if snapshot.pool else ["--size", f"{snapshot.room_bytes}b"]
    return [*command, "--addtag", snapshot.tag, "--name", snapshot.name, f"{snapshot.group}/{snapshot.origin}"]


def _remedy(look_s: float) -> str | None:
    if look_s < SLOW_S:
        return None
    return f"let lvm2 look at fewer disks, which takes it {look_s:.1f} s: lvmdevices(8), or a filter in lvm.conf(5)"


def _guest_pays(volume: Volume, room: OwnRoom | None) -> str:
    if room is None:
        return f"its writes take new blocks of the thin pool {volume.group.name}/{volume.pool}"
    until = "" if room.is_enough else f", of which the snapshot has room for {units.size(room.size_bytes)}"
    return f"its first write to each {units.size(lvmroom.CHUNK_BYTES)} waits until what was there is copied{until}"


# -- looks -------------------------------------------------------------------------------------------------------------


async def _volume_at(origin: str) -> Volume:
    """The volume at any path of its device.  Raises StateError."""
    what = f"the logical volume {origin} cannot be looked at"
    device = await devicemapper.at(origin)
    if device is None:
        raise StateError(f"{what}: it is not active")
    # lvm2 knows each volume by this path, whatever others there are
    found = await lvmcommands.volumes(f"/dev/mapper/{device.name}", what=what)
    volume = next((volume for volume in found if volume.device_uuid == device.uuid), None)
    if volume is None:
        raise StateError(f"{what}: lvm2 does not know the device {device.name}")
    return volume


async def _pool_refusal(volume: Volume) -> str | None:
    if not volume.is_thin:
        return None
    what = f"the thin pool {volume.group.name}/{volume.pool} cannot be looked at"
    pool = devicemapper.pool(await devicemapper.status(devicemapper.pool_name(volume.group.name, volume.pool), what))
    if pool is None or pool.mode != "rw":
        state = {"ro": "is read-only", "out_of_data_space": "is full"}.get(pool.mode if pool else "", "has failed")
        return f"lies in the thin pool {volume.group.name}/{volume.pool}, which {state}"
    return None


async def _scan_refusal() -> str | None:
    found = await lvmcommands.settings("devices/scan_lvs", "devices/use_devicesfile")
    if found.get("scan_lvs") == "0" or found.get("use_devicesfile") == "1":
        return None
    return (
        "lvm2 is set to look for physical volumes in logical volumes (scan_lvs=1 in lvm.conf(5)), and might find those "
        "of the guest in the snapshot"
    )


async def _why_lost(snapshot: LvmKept) -> str | None:
    device = await devicemapper.at(snapshot.path)
    if device is None:
        return f"the snapshot {snapshot} is not active any more"
    if snapshot.device_uuid not in ("", device.uuid):
        return f"{snapshot} is another volume now"
    if not device.is_read_only:
        return f"the snapshot {snapshot} has been made writable"
    what = f"the state of {snapshot} cannot be told"
    if snapshot.pool:
        status = await devicemapper.status(devicemapper.pool_name(snapshot.group, snapshot.pool), what)
        return None if devicemapper.pool(status) else f"the thin pool {snapshot.group}/{snapshot.pool} has failed"
    status = await devicemapper.status(_device(snapshot), what)
    return None if devicemapper.snapshot_used(status) else _overflow(snapshot, " ".join(status[1:]))


def _overflow(snapshot: LvmKept, said: str) -> str:
    """Why the kernel serves the snapshot no more, by its status; that tells no more of it than "Invalid"."""
    return (
        f"the guest has overwritten more than the {units.size(snapshot.room_bytes)} that the snapshot {snapshot} has "
        f"room for, or that room could not be written to (its status is {said}); the guest goes on"
    )


async def _pool_rooms(snapshot: LvmKept) -> list[Room]:
    place = f"{snapshot.group}/{snapshot.pool}"
    what = f"the space of the thin pool {place} cannot be told"
    device = devicemapper.pool_name(snapshot.group, snapshot.pool)
    pool = devicemapper.pool(await devicemapper.status(device, what, SpaceError))
    if pool is None:
        raise SpaceError(f"{what}: it has failed")
    try:
        block_bytes = devicemapper.pool_block_bytes(await devicemapper.table(device, what, SpaceError))
    except ValueError as error:
        raise SpaceError(f"{what}: {error}") from error
    free_blocks = pool.data_total_blocks - pool.data_used_blocks
    metadata = pool.metadata
    return [
        Room(f"the thin pool {place}", free_blocks * block_bytes, pool.data_total_blocks * block_bytes),
        Room(f"the metadata of {place}", metadata.total_bytes - metadata.used_bytes, metadata.total_bytes),
    ]


async def _own_room(snapshot: LvmKept) -> list[Room]:
    if snapshot.is_enough:
        return []
    total = snapshot.room_bytes
    if await devicemapper.at(snapshot.path) is None:
        return [_clones_room(snapshot, Used(0, total))]
    what = f"the space of {snapshot} cannot be told"
    used = devicemapper.snapshot_used(await devicemapper.status(_device(snapshot), what, SpaceError))
    if used is None:
        return [_clones_room(snapshot, Used(total, total))]
    return [_clones_room(snapshot, used)]


def _clones_room(snapshot: LvmKept, used: Used) -> ClonesRoom:
    remedy = names.command("vgextend", snapshot.group, "DEVICE")
    return ClonesRoom(f"the snapshot {snapshot}", used.total_bytes - used.used_bytes, used.total_bytes, remedy)


def _open_to_reader(snapshot: LvmKept) -> None:
    """Give the device node to the reader, as libvirt does it for disks; udev may take it back later."""
    os.chmod(snapshot.path, 0o440)
    os.chown(snapshot.path, snapshot.uid, snapshot.gid)


# -- the end -----------------------------------------------------------------------------------------------------------


async def _creation_ended(snapshot: LvmKept, what: str) -> None:
    """Wait for an lvcreate that was left to itself, or whose server was killed.  Raises LeftoverError."""
    deadline_s = time.monotonic() + UNFINISHED_S
    while running := await blocking.on_path("/proc", LOOK_S, _creators, snapshot.name, kind=LeftoverError):
        if time.monotonic() > deadline_s:
            raise LeftoverError(f"{what}: process {running[0].pid}, lvcreate, is still making it")
        await trio.sleep(POLL_S)


def _creators(name: str) -> list[Process]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            if words[0] == b"lvcreate" and name.encode() in words:
                found.append(Process.of_pid(int(path.parent.name)))
        except OSError:
            continue  # it has ended
    return found
