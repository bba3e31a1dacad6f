"""Tends the scratch VMs of a snapshot: waits for their end, and removes what they leave behind.

The snapshot's server waits for the end of each one's QEMU; what a dead server has not removed, the snapshot's teardown
removes.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import trio

from .. import hypervisor
from ..errors import LeftoverError, SnapmountError, UnreachableError
from ..host import blocking, endings
from ..host.processes import Process
from ..hypervisor import directories
from ..records import journal
from ..records.record import Record
from ..records.store import Lease
from .scratchvm import ScratchVm, forget, forget_unreadable, load, load_all, unreadable

log = logging.getLogger(__name__)

WAKE_SIGNAL = (
    signal.SIGURG
)  # "look at the scratch VMs": a signal that does no harm to a process that does not expect it
MAKER_S = 10.0
REMOVE_S = 10.0
KEPT_S = 5.0  # how often to look for one that is kept and shut off


async def exists(record: Record, vm: ScratchVm) -> bool:
    """Whether it is in use: being made, running, or kept and still known to libvirt.  Raises UnreachableError."""
    if vm.process.runs() or not vm.is_kept:
        return vm.process.runs()
    async with hypervisor.connected(record.connect) as connection:
        return await connection.scratch_vm(vm.uuid, record.id) is not None


async def end(record: Record, directory: Path, vm: ScratchVm) -> None:
    """Destroy it, and remove all that is its.  Idempotent.  Raises LeftoverError or UnreachableError."""
    if not vm.is_started and vm.process != Process.of_pid(os.getpid()):
        await endings.end(vm.process, f"which makes the scratch VM {vm.name}", MAKER_S)
        vm = load(directory, vm.uuid) or vm
    if vm.is_kept or not vm.is_started or vm.process.runs():
        log.info("destroying the scratch VM %s", vm.name)
        await _destroy(record, vm.uuid)
    await _remove(vm.overlays)
    await remove_tpm(record.connect, vm.uuid)
    forget(directory, vm)
    journal.forget(vm.overlays)


async def _destroy(record: Record, uuid: str) -> None:
    """Raises UnreachableError."""
    async with hypervisor.connected(record.connect) as connection:
        domain = await connection.scratch_vm(uuid, record.id)
        if domain:
            await domain.remove()


async def remove_tpm(connect: str, uuid: str) -> None:
    """Remove the emulated TPM that libvirt has left of a scratch VM, as it does after a restart of the host; that of
    another VM stays.  Raises LeftoverError or UnreachableError.
    """
    directory = hypervisor.tpm_directory(connect, uuid)
    if not directory.exists():
        return
    async with hypervisor.connected(connect) as connection:
        if await connection.domain_by_uuid(uuid) is None:
            await _remove(str(directory))


async def _remove(directory: str) -> None:
    """Raises LeftoverError."""
    log.info("removing %s", directory)
    remove, path = directories.remove, Path(directory)
    await blocking.on_path(path, REMOVE_S, remove, path, done="removed", kind=LeftoverError)


async def end_all(record: Record, directory: Path) -> None:
    """End all scratch VMs of a snapshot.  Raises as end() does."""
    for vm in load_all(directory):
        await end(record, directory, vm)
    for uuid, error in unreadable(directory).items():
        log.warning("%s", error.message)
        await _end_unknown(record, directory, uuid)


async def _end_unknown(record: Record, directory: Path, uuid: str) -> None:
    """End a scratch VM whose record cannot be read: its uuid is known, and the journal tells where its overlays are.
    Raises as end() does.
    """
    await _destroy(record, uuid)
    for entry in journal.load_all()[0]:
        if (entry.snapshot, entry.scratch_vm) == (record.id, uuid):
            await _remove(entry.directory)
            await remove_tpm(record.connect, uuid)
            journal.forget(entry.directory)
    forget_unreadable(directory, uuid)


async def stop_all(record: Record, directory: Path, tell: Callable[[str], None]) -> None:
    """End all scratch VMs whose disks have died with the view; those that are kept stay defined.  Raises as end() does,
    or StateError for a record that cannot be read.
    """
    for vm in load_all(directory):
        why = "its disks have died with the snapshot's server"
        if not (vm.is_kept and vm.is_started):
            await end(record, directory, vm)
            tell(f"the scratch VM {vm.name} has been ended: {why}")
        elif vm.state == "running":
            async with hypervisor.connected(record.connect) as connection:
                domain = await connection.scratch_vm(vm.uuid, record.id)
                if domain:
                    await domain.stop()
            tell(f"the scratch VM {vm.name} has been stopped: {why}; it can be started again")


async def watch(lease: Lease, taker: Process | None) -> None:
    """Remove what scratch VMs leave behind, as they end.

    Where `taker`, a command, has taken the snapshot to boot on it, return when that and the last scratch VM are gone.
    """
    bell, rung = trio.open_memory_channel[None](math.inf)
    tended: set[tuple[str, Process]] = set()
    async with trio.open_nursery() as nursery:
        await nursery.start(_ring_when_told, bell)
        if taker:
            nursery.start_soon(_ring_when_gone, taker, bell)
        bell.send_nowait(None)  # for one that came before us
        async for _ in rung:
            vms = load_all(lease.directory)
            for vm in vms:
                if (vm.uuid, vm.process) not in tended:  # first its maker, then its QEMU
                    tended.add((vm.uuid, vm.process))
                    nursery.start_soon(_tend, lease, vm, bell)
            if taker and not vms and not unreadable(lease.directory) and not taker.runs():
                log.info("the last scratch VM is gone")
                nursery.cancel_scope.cancel()


async def _ring_when_told(
    bell: trio.MemorySendChannel[None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(WAKE_SIGNAL) as signals:
        task_status.started()
        async for _ in signals:
            bell.send_nowait(None)


async def _ring_when_gone(process: Process, bell: trio.MemorySendChannel[None]) -> None:
    await endings.wait(process)
    bell.send_nowait(None)


async def _tend(lease: Lease, vm: ScratchVm, bell: trio.MemorySendChannel[None]) -> None:
    """Wait for the end of its maker, or of its QEMU, and remove it, unless it has that still to end; one that is kept,
    when it is undefined.
    """
    try:
        await endings.wait(vm.process)
        last = load(lease.directory, vm.uuid)
        while last and last.process == vm.process and last.is_started and await _is_still_there(lease.record, last):
            await trio.sleep(KEPT_S)
            last = load(lease.directory, vm.uuid)
        if last and last.process == vm.process:
            log.info("the scratch VM %s has ended", last.name)
            await end(lease.record, lease.directory, last)
    except SnapmountError as error:
        log.error("the scratch VM %s: %s", vm.name, error.message)  # teardown tries again, and tells
    bell.send_nowait(None)


async def _is_still_there(record: Record, vm: ScratchVm) -> bool:
    try:
        return await exists(record, vm)
    except UnreachableError:
        return True  # nobody can tell
