"""Loop devices over files: read-only, past the page cache, and gone by themselves when their last user closes them.

So none outlives the backstore that uses it, nor a process that is killed before there is one.  They are made with the
ioctls of linux/loop.h rather than losetup(8), which can neither name a device nor let one go by itself from the start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import LeftoverError, UnreachableError

_CONFIGURE, _GET_STATUS64, _GET_FREE = 0x4C0A, 0x4C05, 0x4C82  # the first since Linux 5.8
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_INFO = "5Q4I64s64s32s2Q"  # struct loop_info64, whose first string names the device
_CONFIG = f"2I{_INFO}8Q"  # struct loop_config
_NAME_BYTES = 63
_ATTEMPTS = 100
_GOING_S = 5.0
_LOOK_S = 0.02


@contextlib.contextmanager
def attached(file: str, name: str, block_bytes: int) -> Iterator[str]:
    """The path of a loop device of that name and logical block size over the file; after the block it lives as long as
    others have it open.

    Raises OSError if the file cannot be opened or the kernel refuses, as older ones do blocks larger than a page of
    memory, and UnreachableError if it has no device.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number, device = _configured(backing, name, block_bytes)
    finally:
        os.close(backing)
    try:
        yield f"/dev/loop{number}"
    finally:
        os.close(device)


def _configured(backing: int, name: str, block_bytes: int) -> tuple[int, int]:
    """The number and a descriptor of a new device."""
    flags = _READ_ONLY | _AUTOCLEAR | _DIRECT_IO
    info = (0, 0, 0, 0, 0, 0, 0, 0, flags, name.encode()[:_NAME_BYTES], b"", b"", 0, 0)
    config = struct.pack(_CONFIG, backing, block_bytes, *info, *(0,) * 8)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # else another process was faster
                    raise
            else:
                return number, device
    finally:
        os.close(control)
    raise UnreachableError("the kernel has no free loop device", "losetup --list")


def named(prefix: str) -> list[str]:
    """The paths of the loop devices in use whose names begin so.

    The name is what tells them: of a file whose mount has been taken away the kernel knows no path.
    """
    in_use = (Path("/dev", loop.parent.name) for loop in Path("/sys/block").glob("loop*/loop"))
    return sorted(str(device) for device in in_use if _name(device).startswith(prefix))


def _name(device: Path) -> str:
    """The device's name, '' where it is no longer in use."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        info = fcntl.ioctl(descriptor, _GET_STATUS64, bytes(struct.calcsize(_INFO)))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    name: bytes = struct.unpack(_INFO, info)[9]
    return name.rstrip(b"\0").decode(errors="replace")


def wait_gone(prefix: str) -> None:
    """Wait until there is no such device: whoever looks at new ones, such as udev, has them open for a moment.

    Raises LeftoverError after five seconds.
    """
    deadline = time.monotonic() + _GOING_S
    while left := named(prefix):
        if time.monotonic() > deadline:
            raise LeftoverError(f"{', '.join(left)} is still in use", f"fuser --verbose {' '.join(left)}")
        time.sleep(_LOOK_S)
