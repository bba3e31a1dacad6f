"""/dev/kvm, by a device of its kind that the tests make."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from snapmount.core.user import User
from snapmount.hypervisor import kvm

MEMBER, STRANGER = User(1234, 1234, (3456,)), User(1234, 1234, ())


@pytest.mark.parametrize(
    ("mode", "owner", "user", "is_open"),
    [
        (0o660, (0, 3456), MEMBER, True),
        (0o660, (0, 3456), STRANGER, False),
        (0o600, (0, 0), MEMBER, False),
        (0o640, (0, 3456), MEMBER, False),
        (0o666, (0, 0), STRANGER, True),
        (0o600, (1234, 0), STRANGER, True),
    ],
)
async def test_whom_the_device_is_open_to_is_told_by_its_permissions(
    mode: int, owner: tuple[int, int], user: User, is_open: bool, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it runs a program as another user")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    device = tmp_path / "kvm"
    os.mknod(device, stat.S_IFCHR, os.makedev(10, 232))
    os.chown(device, *owner)
    device.chmod(mode)
    assert await kvm.is_open_to(user, str(device)) is is_open
    assert not await kvm.is_open_to(user, str(tmp_path / "missing"))
