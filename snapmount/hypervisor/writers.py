"""Who else on this host can write to a VM's images: processes, and the kernel for a mount, swap or a loop device.

What they write does not pass the VM's QEMU, which so cannot keep the snapshot's moment of it.  QEMU locks image files
against other QEMUs alone, and block devices not at all.  What another host writes to shared storage is not seen here.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import trio

from ..core import names
from ..errors import StateError
from ..host import blocking, mounts, qemu

log = logging.getLogger(__name__)

LOOK_S = 10.0
AGAIN_S = 0.3

PROC = Path("/proc")
SYS = Path("/sys")
SWAPS = PROC / "swaps"
DELETED = " (deleted)"  # what the kernel puts behind the path of a file that is gone
# virtlockd(8) has a file open for as long as it holds its lock, and never writes to it.
_HARMLESS = frozenset({"virtlockd"})

_INODE = re.compile(rb"^ino:\t(\d+)$", re.MULTILINE)

# Of a file its device and inode, of a block device its number last; of what cannot be looked at its path.
Key = tuple[int, int, int] | str


@dataclass(frozen=True)
class Image:
    """A file or block device that a disk rests on."""

    disk: str
    path: str


@dataclass(frozen=True)
class Writer:
    """Who else can write to a disk's image."""

    disk: str
    what: str  # follows the disk's name


async def faults(images: Sequence[Image], vm_uuid: str) -> dict[str, str]:
    """What makes each disk that others write to unfit for a snapshot, in words that follow its name.

    A process that is gone at a second look has not meant to write: SMART tools open whole disks like that for a moment.
    Raises StateError if an image does not answer.
    """
    found = await _look(images, vm_uuid)
    if found:
        await trio.sleep(AGAIN_S)
        still = await _look(images, vm_uuid)
        found = [each for each in found if each in still]
    return {each.disk: each.what for each in reversed(found)}


async def _look(images: Sequence[Image], vm_uuid: str) -> list[Writer]:
    try:
        return await blocking.call(LOOK_S, find, images, vm_uuid)
    except trio.TooSlowError:
        paths = names.listed(list(dict.fromkeys(image.path for image in images)))
        raise StateError(f"who uses {paths} could not be told within {LOOK_S:g} s") from None


def find(images: Iterable[Image], vm_uuid: str) -> list[Writer]:
    """Who else than the VM's QEMU can write to these images.  What is no file or block device is left out, and so is
    what is not there: QEMU may have been given it as an open file.

    Processes of other users are seen by root alone.  It looks at the kernel's tables, and at no file system but the
    images' own.  Raises OSError if there is no /proc.
    """
    keyed = {key: image for image in images if (key := _key(image.path)) is not None}
    keyed |= {_key_of_device(number): image for number, image in _loop_devices(keyed)}
    for number, image in [(key[2], image) for key, image in keyed.items() if isinstance(key, tuple) and key[2]]:
        for each in _family(number):
            keyed.setdefault(_key_of_device(each), replace(image, path=f"{image.path}, there: {_name(each)}"))
    return [*_processes(keyed, vm_uuid), *_mounted(keyed)]


def _key(path: str) -> Key | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:  # a file server may not let root in, but QEMU's user alone
        log.info("%s cannot be looked at (%s): who writes to it is known by this path alone", path, error.strerror)
        return path
    return key_of(status)


def key_of(status: os.stat_result) -> tuple[int, int, int] | None:
    if stat.S_ISREG(status.st_mode):
        return status.st_dev, status.st_ino, 0
    return _key_of_device(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None


def _key_of_device(number: int) -> tuple[int, int, int]:
    return 0, 0, number


# -- processes ---------------------------------------------------------------------------------------------------------


def _processes(keyed: Mapping[Key, Image], vm_uuid: str) -> Iterator[Writer]:
    """Those that have one of them open for writing."""
    file_names = {os.path.basename(image.path) for image in keyed.values()}
    inodes = {key[1] for key in keyed if isinstance(key, tuple) and key[1]}
    for pid in filter(str.isdecimal, os.listdir(PROC)):
        found = {keyed[key] for key in _written_by(pid, file_names, inodes) if key in keyed}
        if found and not _is_harmless(pid, vm_uuid):
            for image in sorted(found, key=lambda image: image.path):
                yield Writer(image.disk, f"({image.path}) is open for writing by {_who(pid)}")


def _written_by(pid: str, file_names: set[str], inodes: set[int]) -> Iterator[Key]:
    """What the process has open for writing, as far as it may be meant.

    The link's own mode tells whether for writing, and fdinfo the inode, since Linux 5.14: no file system is asked.  A
    file by another name or of another mount is the same inode; a device may have another node, in /dev.
    proc_pid_fd(5), proc_pid_fdinfo(5)
    """
    directory = f"{PROC}/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except OSError:
        return  # it has ended, or is another user's
    for number in numbers:
        link = f"{directory}/{number}"
        try:
            target = os.readlink(link)
            if not target.startswith("/") or not os.lstat(link).st_mode & stat.S_IWUSR:
                continue
            is_meant = target.startswith("/dev/") or os.path.basename(target.removesuffix(DELETED)) in file_names
            yield target
            if is_meant or _inode(pid, number) in inodes:
                key = key_of(os.stat(link))
                if key:
                    yield key
        except OSError:
            continue  # it has been closed meanwhile


def _inode(pid: str, number: str) -> int:
    """The inode of an open file, 0 before Linux 5.14.  Raises OSError.

    There may be ten thousands of files to look at: hence no more than three calls of the kernel.
    """
    descriptor = os.open(f"{PROC}/{pid}/fdinfo/{number}", os.O_RDONLY)
    try:
        found = _INODE.search(os.read(descriptor, 512))
    finally:
        os.close(descriptor)
    return int(found.group(1)) if found else 0


def _is_harmless(pid: str, vm_uuid: str) -> bool:
    """Whether it is the VM's own QEMU, or keeps the file open for the sake of a lock.

    Who can open the image for writing at all has no need to pretend to be that QEMU.
    """
    return qemu.has_uuid(_read(f"{pid}/cmdline"), vm_uuid) or _command(pid) in _HARMLESS


def _who(pid: str) -> str:
    """'process 4711 (dd)', or of the VM that it is the QEMU of."""
    arguments = os.fsdecode(_read(f"{pid}/cmdline")).split("\0")
    guest = next((value for option, value in pairwise(arguments) if option == "-name"), "")
    vm = next((part.removeprefix("guest=") for part in guest.split(",") if part.startswith("guest=")), "")
    return f"the VM {vm} (process {pid})" if vm else f"process {pid} ({_command(pid)})"


def _command(pid: str) -> str:
    return os.fsdecode(_read(f"{pid}/comm")).strip()


def _read(name: str) -> bytes:
    try:
        return (PROC / name).read_bytes()
    except OSError:
        return b""  # it has ended


# -- the kernel --------------------------------------------------------------------------------------------------------


def _loop_devices(keyed: Mapping[Key, Image]) -> Iterator[tuple[int, Image]]:
    """The loop devices over the images that can be written (loop(4)), and which image that is."""
    for device in SYS.glob("block/loop*"):
        try:
            backing = (device / "loop/backing_file").read_text().rstrip("\n").removesuffix(DELETED)
            key = _key(backing) if (device / "ro").read_text().strip() == "0" else None
        except OSError:
            continue  # it has none
        image = keyed.get(key) if key else None
        if image:
            yield _number(device), replace(image, path=f"{image.path}, there: {device.name}")


def _mounted(keyed: Mapping[Key, Image]) -> Iterator[Writer]:
    """What this host has mounted, or uses as swap.

    A file system of several devices, such as btrfs, has a number of its own, and names one of them as its source.
    """
    used = [
        (mount.device if os.major(mount.device) else _block_number(mount.source), f"mounted at {mount.path}")
        for mount in mounts.current()
        if mount.is_writable
    ]
    used += [(_block_number(line.split(" ")[0]), "used as swap") for line in SWAPS.read_text().splitlines()[1:]]
    for number, how in used:
        image = keyed.get(_key_of_device(number))
        if number and image:
            yield Writer(image.disk, f"({image.path}) is {how} on this host")


def _block_number(path: str) -> int:
    """0 for no block device."""
    if not path.startswith("/dev/"):
        return 0
    try:
        key = key_of(os.stat(path))
    except OSError:
        return 0
    return key[2] if key else 0


def _family(number: int) -> Iterator[int]:
    """The device, its partitions, and what rests on any of them: device mapper, md, and so on."""
    pending, seen = [number], set[int]()
    while pending:
        number = pending.pop()
        if number in seen:
            continue
        seen.add(number)
        yield number
        pending += map(_number, _below(number))


def _below(number: int) -> Iterator[Path]:
    directory = _directory(number)
    yield from directory.glob("holders/*")
    yield from (each.parent for each in directory.glob("*/partition"))


def _directory(number: int) -> Path:
    return SYS / f"dev/block/{os.major(number)}:{os.minor(number)}"


def _number(directory: Path) -> int:
    major, minor = (directory / "dev").read_text().strip().split(":")
    return os.makedev(int(major), int(minor))


def _name(number: int) -> str:
    """sda1, or vg0-root for a device of device mapper."""
    directory = _directory(number)
    try:
        return (directory / "dm/name").read_text().strip()
    except OSError:
        return directory.resolve().name
