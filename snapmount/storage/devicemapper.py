"""Device mapper's own view of devices: looks that need no lock of lvm2's and scan no disks.

So a watch goes on while an lvm2 command hangs.  Targets: snapshot, thin and thin-pool in the kernel's
Documentation/admin-guide/device-mapper/.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import SnapmountError, StateError
from ..host import blocking, execution

LOOK_S = 30.0
SECTOR_BYTES = 512
METADATA_BLOCK_BYTES = 4096
# Most messages to a device are not about a place in it.
NO_SECTOR = "0"


@dataclass(frozen=True)
class Device:
    """An active device."""

    name: str
    uuid: str
    size_bytes: int
    is_read_only: bool


@dataclass(frozen=True)
class Used:
    """How much of something there is, and is used."""

    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Pool:
    """A thin pool."""

    mode: str  # "rw", "ro", "out_of_data_space" or "Fail"
    metadata: Used
    data_used_blocks: int
    data_total_blocks: int
    holds_metadata: bool  # somebody has reserved a snapshot of its metadata


def name(group: str, volume: str) -> str:
    """The name that lvm2 gives the device of a volume: hyphens within names are doubled (lvm(8))."""
    return "-".join(part.replace("-", "--") for part in (group, volume))


def pool_name(group: str, pool: str) -> str:
    """The name of the device that is a thin pool, below the volume of that name."""
    return f"{name(group, pool)}-tpool"


async def at(path: str) -> Device | None:
    """The device at the path; None if nothing is there, or something else.  Raises StateError."""
    return await blocking.on_path(path, LOOK_S, _at, path)


def _at(path: str) -> Device | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    place = Path("/sys/dev/block", numbers)
    try:
        values = [(place / file).read_text().strip() for file in ("dm/name", "dm/uuid", "size", "ro")]
    except FileNotFoundError:
        return None
    called, uuid, sectors, read_only = values
    return Device(called, uuid, int(sectors) * SECTOR_BYTES, read_only == "1")


async def status(device: str, what: str, kind: type[SnapmountError] = StateError) -> list[str]:
    """The words of its target's status, from the target's name on.  Raises an error of that kind: `what`, and why."""
    return await _target(["dmsetup", "status", "--noflush", device], what, kind)


async def table(device: str, what: str, kind: type[SnapmountError] = StateError) -> list[str]:
    """The words of its target's table, as status()."""
    return await _target(["dmsetup", "table", device], what, kind)


async def message(device: str, text: str, what: str) -> None:
    """Send its target a message.  Raises StateError."""
    await execution.output(["dmsetup", "message", device, NO_SECTOR, text], LOOK_S, what, StateError)


async def _target(command: list[str], what: str, kind: type[SnapmountError]) -> list[str]:
    lines = (await execution.output(command, LOOK_S, what, kind)).decode(errors="replace").splitlines()
    if len(lines) != 1:  # as if there were several: "START LENGTH TARGET WORD..."
        raise kind(f"{what}: it has {len(lines)} targets")
    return lines[0].split()[2:]


def snapshot_used(words: list[str]) -> Used | None:
    """The room of a classic snapshot by its status; None if the snapshot is invalid."""
    match = re.fullmatch(r"snapshot (\d+)/(\d+) \d+", " ".join(words))
    return Used(int(match[1]) * SECTOR_BYTES, int(match[2]) * SECTOR_BYTES) if match else None


def pool(words: list[str]) -> Pool | None:
    """A thin pool by its status; None if it has failed."""
    pattern = r"thin-pool \d+ (\d+)/(\d+) (\d+)/(\d+) (\S+) (rw|ro|out_of_data_space)\b.*"
    match = re.fullmatch(pattern, " ".join(words))
    if not match:
        return None
    used, total, data_used, data_total = (int(number) for number in match.groups()[:4])
    metadata = Used(used * METADATA_BLOCK_BYTES, total * METADATA_BLOCK_BYTES)
    return Pool(match[6], metadata, data_used, data_total, match[5] != "-")


def pool_block_bytes(words: list[str]) -> int:
    """How much a thin pool allocates at once, by its table.  Raises ValueError."""
    match = re.fullmatch(r"thin-pool \S+ \S+ (\d+) .*", " ".join(words))
    if not match:
        raise ValueError(f"is no thin pool: {' '.join(words)}")
    return int(match[1]) * SECTOR_BYTES


@dataclass(frozen=True)
class Thin:
    """A thin volume."""

    number: int  # within its pool
    has_external_origin: bool  # what it has not allocated itself is read from there


def thin(words: list[str]) -> Thin:
    """A thin volume by its table.  Raises ValueError."""
    match = re.fullmatch(r"thin \S+ (\d+)( \S+)?", " ".join(words))
    if not match:
        raise ValueError(f"is no thin volume: {' '.join(words)}")
    return Thin(int(match[1]), match[2] is not None)
