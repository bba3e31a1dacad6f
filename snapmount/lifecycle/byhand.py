"""The commands that undo what is left of a snapshot, for whoever has to do it in the program's place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import trio

from .. import hypervisor
from ..attach import attachments
from ..boot import scratchvm
from ..boot.scratchvm import ScratchVm
from ..core import names
from ..core.names import command
from ..errors import SnapmountError, UnreachableError
from ..host import mounts
from ..hypervisor import Domain
from ..publish import iscsi
from ..records import journal
from ..records.record import Record
from ..records.store import Lease
from ..sources import registry
from ..sources.source import ByHand

log = logging.getLogger(__name__)
T = TypeVar("T")

ASK_S = 3.0
_UNDEFINE = ("--nvram", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")  # as Domain.remove() does


async def commands(lease: Lease, *, is_released: bool) -> str:
    """One line for a shell, in the order of teardown; it stops at a command that fails.

    It names what is there now.  What waits for libvirt or QEMU is in it also where they do not answer.
    """
    record = lease.record
    virsh = ("virsh", "-c", record.connect)
    lines = [*await _users(record, lease.directory, virsh), *await _publication(lease)]
    lines += [command("umount", "-l", mount.path) for mount in mounts.current() if mount.source == record.mount_source]
    source = registry.of(record).by_hand(record.kept)
    lines += [] if is_released else source.release
    if record.paused_run is not None:
        lines.append(command(*virsh, "resume", record.snapshot.vm_name))
    if record.frozen:
        lines.append(command(*virsh, "domfsthaw", record.snapshot.vm_name))
    if await _is_stopped(record):
        lines.append(command(*virsh, "resume", record.snapshot.vm_name))
    lines += _files(record, lease.directory, source)
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
    return await _ask(record, vm.uuid, Domain.is_persistent) is not False


async def _is_stopped(record: Record) -> bool:
    """Whether an error of a disk has paused the guest; not where libvirt does not tell soon."""
    return await _ask(record, record.snapshot.vm_uuid, Domain.stopped_by) not in (None, False)


async def _ask(record: Record, uuid: str, question: Callable[[Domain], Awaitable[T]]) -> T | Literal[False] | None:
    """The answer to a question about the VM, False if there is no such VM, None if libvirt does not tell soon."""
    with contextlib.suppress(UnreachableError), trio.move_on_after(ASK_S):
        async with hypervisor.connected(record.connect) as connection:
            domain = await connection.domain_by_uuid(uuid)
            return domain is not None and await question(domain)
    return None


async def _publication(lease: Lease) -> list[str]:
    publication = lease.record.publication
    if not publication:
        return []
    try:
        return await iscsi.by_hand(publication.backend, lease.directory, publication.target)
    except SnapmountError as error:
        log.warning("how to withdraw %s by hand cannot be told: %s", publication.target.iqn, error.message)
        return []


def _files(record: Record, directory: Path, source: ByHand) -> Iterator[str]:
    """The view's own directory goes only where it is empty: what may be mounted there by now is not ours."""
    if record.is_hidden:
        yield command("rm", "-df", record.mountpoint)
    yield from source.destroy
    overlays = [vm.overlays for vm in scratchvm.load_all(directory)]
    entries = [str(journal.path(each)) for each in (names.directory(record.id), *overlays)]
    yield command("rm", "-rf", *source.paths, *overlays, *entries, str(directory))
