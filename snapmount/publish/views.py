"""What a VM's QEMU needs of a snapshot's view to have its files as disks, for those who hand it over."""

from __future__ import annotations

import trio

from ..core import names
from ..core.user import User
from ..errors import StateError, UsageError
from ..host import blocking
from ..hypervisor import directories
from ..records.record import Record

CHECK_S = 10.0
REMEDY = "a snapshot with a MOUNTPOINT that it can reach, or with none (--iscsi)"


async def check(record: Record, user: User, qemu: str) -> None:
    """Raise StateError where `qemu`, which runs as this user, cannot read the view, or libvirt be told of it, or no
    disk is in it.
    """
    record.snapshot.check_readable(names.command("snapmount", "show", record.id))
    try:
        names.check_utf_8(record.mountpoint, "the mountpoint")
    except UsageError as error:
        raise StateError(error.message, REMEDY) from None
    file = f"{record.mountpoint}/{record.snapshot.disks[0].file}"
    try:
        done = await blocking.run(CHECK_S, ["test", "-r", file], **directories.as_user(user))
    except trio.TooSlowError:
        raise StateError(f"{record.mountpoint} did not answer within {CHECK_S:g} s") from None
    if done.returncode:
        raise StateError(f"{qemu}, which runs as uid {user.uid}, cannot read {file}", REMEDY)
