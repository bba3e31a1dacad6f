"""The commands that undo what is left of a snapshot, for whoever has to do it in the program's place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import trio

from . import attachments, hypervisor, journal, mounts, scratchvm
from .core.names import command
from .errors import SnapmountError, UnreachableError
from .publish import iscsi
from .records import Record
from .scratch import devices
from .scratchvm import ScratchVm
from .state import Claim

LOOK_S = 2.0

log = logging.getLogger(__name__)

ASK_S = 5.0
_UNDEFINE = ("--nvram", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")  # as Domain.remove() does


async def commands(claim: Claim, *, job_has_ended: bool) -> str:
    """One line for a shell, in the order of teardown; it stops at a command that fails.

    It names what is there now.  What waits for libvirt or QEMU is in it also where they do not answer.
    """
    record = claim.record
    virsh = ("virsh", "-c", record.connect)
    lines = [*await _users(record, claim.directory, virsh), *await _publication(claim)]
    lines += [command("umount", "-l", mount.path) for mount in mounts.current() if mount.source == record.mount_source]
    if not job_has_ended:
        lines.append(command(*virsh, "domjobabort", record.snapshot.vm_name))
    if record.frozen:
        lines.append(command(*virsh, "domfsthaw", record.snapshot.vm_name))
    if await _is_stopped(record):
        lines.append(command(*virsh, "resume", record.snapshot.vm_name))
    lines += _files(record, claim.directory)
    return " && ".join(lines)


async def _users(record: Record, directory: Path, virsh: tuple[str, ...]) -> list[str]:
    """Destroy the scratch VMs, and unplug the disks that other VMs have."""
    lines = []
    for vm in scratchvm.load_all(directory):
        if vm.is_started and vm.state == "running":
            lines.append(_unless_gone(virsh, vm.uuid, "destroy"))
        if vm.is_kept and await _is_defined(record, vm):
            lines.append(_unless_gone(virsh, vm.uuid, "undefine", *_UNDEFINE))
    attached = attachments.current(directory)
    return lines + [command(*virsh, "detach-device-alias", each.vm_uuid, each.alias, "--live") for each in attached]


def _unless_gone(virsh: tuple[str, ...], uuid: str, *words: str) -> str:
    """A command for a VM that may have ended by then: libvirtd ends those whose disks are gone when it is started.

    It fails where libvirt cannot be reached, so that nothing is taken from a VM that runs.
    """
    known = command(*virsh, "domid", uuid)
    return f"{{ {command(*virsh, *words, uuid)} || LC_ALL=C {known} 2>&1 | grep -q 'failed to get domain'; }}"


async def _is_defined(record: Record, vm: ScratchVm) -> bool:
    """Whether libvirt will know it also when it does not run, or does not answer now."""
    with contextlib.suppress(UnreachableError), trio.move_on_after(ASK_S):
        async with hypervisor.connected(record.connect) as connection:
            domain = await connection.domain_by_uuid(vm.uuid)
            return domain is not None and await domain.is_persistent()
    return True


async def _is_stopped(record: Record) -> bool:
    """Whether an error of a disk has paused the guest; not where libvirt does not tell soon."""
    with trio.move_on_after(LOOK_S), contextlib.suppress(UnreachableError):
        async with hypervisor.connected(record.connect) as connection:
            domain = await connection.domain_by_uuid(record.snapshot.vm_uuid)
            return domain is not None and await domain.stopped_by() is not None
    return False


async def _publication(claim: Claim) -> list[str]:
    publication = claim.record.publication
    if not publication:
        return []
    try:
        return await iscsi.by_hand(publication.backend, claim.directory, publication.target)
    except SnapmountError as error:
        log.warning("how to withdraw %s by hand cannot be told: %s", publication.target.iqn, error.message)
        return []


def _files(record: Record, directory: Path) -> Iterator[str]:
    """The view's own directory goes only where it is empty: what may be mounted there by now is not ours."""
    if record.is_hidden:
        yield command("rm", "-df", record.mountpoint)
    for _, device in record.terms.devices:
        with contextlib.suppress(OSError):  # one that cannot be read is not known to be ours
            if devices.is_ours(device, record.id):
                yield command("dd", "if=/dev/zero", f"of={device}", f"bs={devices.CLEARED_BYTES}", "count=1")
    ours = [record.scratch, *(vm.overlays for vm in scratchvm.load_all(directory))]
    yield command("rm", "-rf", *ours, *(str(journal.path(each)) for each in ours), record.socket, str(directory))
