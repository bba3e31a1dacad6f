"""Disks of which a backup job cannot keep the moment, or whose snapshot would harm the VM; no input or output."""

from __future__ import annotations

from collections.abc import Sequence

from ...core import names
from ...core.diskdefinition import DiskDefinition
from ...core.plan import Choice
from ...errors import StateError

QEMU_NBD_IN_IOTHREADS = (8, 2, 3)  # the first version that can


def check_iothreads(
    vm: str, chosen: Sequence[DiskDefinition], choice: Choice, qemu_version: tuple[int, ...] | None
) -> None:
    """Raise StateError if a disk is served by an iothread, in a QEMU that would crash as soon as an NBD client of
    its backup job goes away; a version that is not known is taken for such a one.

    Before 8.2.3 the NBD server lets go of a client in the iothread, and since the mending of CVE-2024-7409, which
    distributions have put into older versions, that fails an assertion (nbd_blockdev_client_closed).  QEMU's commit
    f816310d0c32, "nbd/server: only traverse NBDExport->clients from main loop thread".
    """
    if qemu_version and qemu_version >= QEMU_NBD_IN_IOTHREADS:
        return
    threaded = [disk.name for disk in chosen if disk.has_iothread]
    if threaded:
        version = ".".join(map(str, qemu_version)) if qemu_version else "of an unknown version"
        needed = ".".join(map(str, QEMU_NBD_IN_IOTHREADS))
        use = "uses an iothread" if len(threaded) == 1 else "use iothreads"
        edit = f"{names.command('virsh', 'edit', vm)}   (to take the iothread away; then shut {vm} down and start it)"
        raise StateError(
            f"{vm}: {names.listed(threaded)} {use}, and the VM's QEMU {version} would crash at the end of a "
            f"snapshot of such a disk; QEMU {needed} and later do not",
            choice.without(threaded, chosen) or edit,
        )
