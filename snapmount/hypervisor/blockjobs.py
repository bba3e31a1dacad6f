"""A VM's block jobs: those that virsh(1) starts with blockcopy, blockcommit and blockpull, one at a time on a disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import libvirt

from ..core import names
from ..errors import StateError
from .calls import call, explained

_KINDS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "commit",
}


class BlockJobs:
    """The block jobs of one VM."""

    def __init__(self, handle: Any, vm_name: str) -> None:
        self._handle = handle
        self._vm_name = vm_name

    async def check_none(self, disks: Iterable[str], why: str = "a disk can have one at a time") -> None:
        """Raise StateError if one runs on one of these disks, and why that is refused: libvirt makes no backup of
        that disk then.

        libvirt is asked, since the definition tells of those alone that mirror the disk.  Raises UnreachableError.
        """
        for disk in disks:
            with explained(f"{self._vm_name}: ask for the block job of {disk}"):
                job = await call("ask for a block job", self._handle.blockJobInfo, disk)
            if job:
                kind = _KINDS.get(job["type"], "of another kind")
                raise StateError(
                    f"{self._vm_name}: a block job ({kind}) runs on {disk}, and {why}",
                    f"{names.command('virsh', 'blockjob', self._vm_name, disk)}   (and wait for its end; --abort or "
                    "--pivot end it)",
                )
