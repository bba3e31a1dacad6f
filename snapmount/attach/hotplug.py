"""Plugs a snapshot's disks into another VM that runs, its helper, and takes them away again.

To the helper's QEMU they are files of the view.  Two other ways would need no mount that it sees, but do not hold: open
files handed to it (virDomainFDAssociate: libvirt 9.0 loses them while it plugs a disk), and the NBD exports (security
drivers keep a VM's QEMU from the sockets of another's).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from .. import hypervisor
from ..core import helperdisk, names, slots
from ..core.blocksize import DEFAULT_BLOCK_SIZE
from ..core.snapshot import Disk
from ..errors import NotFoundError, SnapmountError, StateError
from ..host import blocking, locks
from ..host.processes import Process
from ..hypervisor import directories
from ..publish import views
from ..records.record import Record
from ..records.store import Store
from .attachments import RECORDS, Attachment

log = logging.getLogger(__name__)

CHECK_S = 10.0
LOCK_S = 60.0
LET_GO_S = 10.0  # for a guest, where nobody waits for it: most need less than one
POLL_S = 0.05


@dataclass(frozen=True)
class AttachRequest:
    """What shall be plugged into which VM."""

    helper: str  # its name or uuid
    disks: tuple[str, ...] = ()  # empty: all
    bus: str = "virtio"


async def attach(request: AttachRequest, record: Record, store: Store) -> list[Attachment]:
    """Plug disks of an active snapshot into a running VM: all of them, or none.

    Raises NotFoundError for an unknown VM or disk, StateError if it cannot be done, UnreachableError.
    """
    directory = store.path(record.id)
    store.check_active(record, "attached")
    disks = _chosen(record, request.disks)
    async with hypervisor.connected(record.connect) as connection, _alone(record, directory):
        helper = await connection.domain(request.helper)
        qemu = await _check_helper(record, helper)
        xml = await helper.xml()
        await views.check(record, hypervisor.qemu_user(xml), f"QEMU of {helper.name}")
        await _check_visible(record, helper.name, qemu)
        await _check_block_sizes(record, disks, helper, request.bus)
        if not slots.has_controller(xml, request.bus):
            raise StateError(
                f"{helper.name} has no {request.bus} controller", "--bus virtio, or add a controller to it"
            )
        targets = slots.free_targets(xml, request.bus, len(disks))
        planned = [
            Attachment(record.id, disk, helper.name, helper.uuid, qemu, request.bus, target)
            for disk, target in zip(disks, targets, strict=True)
        ]
        await _check_not_attached(directory, planned, helper)
        try:
            for each in planned:
                _write(directory, each)
            store.check_active(record, "attached")  # not before: what ends the snapshot looks for the records
            with _explained(request, record, helper, xml, disks):
                return [await _plug(record, directory, helper, xml, each) for each in planned]
        except BaseException:
            with trio.CancelScope(shield=True):
                await _give_up(directory, helper, planned)
            raise


async def detach(
    record: Record, store: Store, helper: str | None, disks: Sequence[str], patience_s: float
) -> list[Attachment]:
    """Unplug disks of the snapshot from that VM (None: from all), each guest having so long to let go of them; return
    those that were plugged in.  Idempotent.

    Raises NotFoundError for an unknown VM or disk, StateError if a guest does not let go, UnreachableError.
    """
    directory = store.path(record.id)
    chosen = _chosen(record, disks)
    async with hypervisor.connected(record.connect) as connection:
        if helper is not None and not any(_is_of(each, helper) for each in RECORDS.load_all(directory)):
            await connection.domain(helper)  # only to tell a name that is none
        async with _alone(record, directory):
            attached = [
                each
                for each in RECORDS.load_all(directory)
                if each.disk in chosen and (helper is None or _is_of(each, helper))
            ]
            try:
                unplugged, errors = await _unplug_all(connection, directory, attached, patience_s)
            except trio.Cancelled:
                if not {each.key for each in attached}.isdisjoint(each.key for each in RECORDS.load_all(directory)):
                    raise
                unplugged, errors = attached, []  # the guests have let go of all of them by then
    for error in errors[1:]:
        log.warning("%s", error.message)
    if errors:
        raise errors[0]
    return unplugged


async def end_all(record: Record, directory: Path) -> list[Attachment]:
    """Unplug all disks of the snapshot, before its view goes; return those that were plugged in and are no more.  A
    guest that does not let go keeps a disk whose reads fail; it is not waited for any longer.  Idempotent.

    Raises StateError where disks are still being attached, UnreachableError if libvirt does not answer.
    """
    if not any(RECORDS.sorted_out(directory)):
        return []
    async with _alone(record, directory), hypervisor.connected(record.connect) as connection:
        attached, broken = RECORDS.sorted_out(directory)
        unplugged, errors = await _unplug_all(connection, directory, attached, LET_GO_S)
        for error in errors:
            log.warning("%s; its reads will fail from now on", error.message)
        for each in attached:
            RECORDS.forget(directory, each)
        for key, error in broken.items():
            log.warning("%s", error.message)
            await _unplug_unknown(connection, record, key)
            RECORDS.forget_key(directory, key)
    return unplugged


async def _unplug_unknown(connection: hypervisor.Hypervisor, record: Record, key: str) -> None:
    """Unplug one whose record cannot be read: its key tells of which VM, and which disk it is."""
    uuid, _, disk = key.partition(".")
    domain = await connection.domain_by_uuid(uuid) if names.is_uuid(uuid) else None
    why = domain and await domain.unplug(helperdisk.alias(record.id, disk), LET_GO_S)
    if domain and why:
        log.warning("%s still has %s: %s; its reads will fail from now on", domain.name, disk, why)


async def used_by(record: Record, directory: Path) -> list[Attachment]:
    """The attachments that there truly are: the VM runs, and has the disk.  Raises StateError, UnreachableError."""
    recorded = RECORDS.load_all(directory)
    if not recorded:
        return []
    async with hypervisor.connected(record.connect) as connection:
        return [each for each in recorded if await _has(connection, each)]


async def _has(connection: hypervisor.Hypervisor, attached: Attachment) -> bool:
    domain = await connection.domain_by_uuid(attached.vm_uuid)
    return domain is not None and await domain.has_device(attached.alias)


def _is_of(attached: Attachment, helper: str) -> bool:
    return helper in (attached.vm_name, attached.vm_uuid)


def _chosen(record: Record, wanted: Sequence[str]) -> list[str]:
    """The disks of the snapshot that are wanted, or all.  Raises NotFoundError."""
    known = [disk.name for disk in record.snapshot.disks]
    for name in wanted:
        if name not in known:
            has = "; ".join([f"it has {', '.join(known) or 'none'}", *record.snapshot.elsewhere])
            raise NotFoundError(f"snapshot {record.id}: there is no disk {name!r}; {has}")
    return [name for name in known if not wanted or name in wanted]


@contextlib.asynccontextmanager
async def _alone(record: Record, directory: Path) -> AsyncIterator[None]:
    """Hold the lock of the snapshot's attachments: one command at a time plugs or unplugs.  Raises StateError."""
    path = directory / RECORDS.kind
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = await _lock(path)
    except OSError as error:
        raise StateError(f"the record {path} cannot be written: {error.strerror}") from error
    except trio.TooSlowError:
        raise StateError(
            f"another snapmount still attaches or detaches disks of snapshot {record.id}",
            names.command("snapmount", "show", record.id),
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


async def _lock(directory: Path) -> int:
    """Raises trio.TooSlowError and OSError."""
    with trio.fail_after(LOCK_S):
        while True:
            try:
                return locks.locked(directory, os.O_RDONLY | os.O_DIRECTORY)
            except BlockingIOError:
                await trio.sleep(POLL_S)


# -- attach ------------------------------------------------------------------------------------------------------------


async def _check_helper(record: Record, helper: hypervisor.Domain) -> Process:
    """The helper's QEMU.  Raises StateError if the VM cannot be a helper."""
    if helper.uuid == record.snapshot.vm_uuid:
        raise StateError(
            f"{helper.name} cannot have its own snapshot attached: its QEMU, which serves it, would wait for itself",
            names.command("snapmount", "--iscsi", helper.name) + "   (and log in from within the guest)",
        )
    if not await helper.is_active():
        raise StateError(f"{helper.name} is shut off", names.command("virsh", "start", helper.name))
    found = await helper.qemu(record.connect)
    try:
        if found is None:
            raise ProcessLookupError
        return Process.of_pid(found.pid)
    except OSError:
        raise StateError(helper.why_no_qemu(record.connect)) from None


async def _check_visible(record: Record, name: str, qemu: Process) -> None:
    """Raise StateError if the helper's QEMU does not see the view."""
    mountpoint = Path(record.mountpoint)
    try:
        is_visible = await blocking.call(CHECK_S, directories.visible_to, qemu.pid, mountpoint)
    except trio.TooSlowError:
        raise StateError(f"{mountpoint} did not answer within {CHECK_S:g} s") from None
    if not is_visible:
        raise StateError(
            f"QEMU of {name} (process {qemu.pid}) does not see {mountpoint}: it lives in a mount namespace of its own, "
            "to which what is mounted there now is not passed on",
            f"{names.command('mount', '--make-rshared', '/')}   (and start {names.printable(name)} anew)",
        )


async def _check_not_attached(directory: Path, planned: Sequence[Attachment], helper: hypervisor.Domain) -> None:
    for each in planned:
        if await helper.has_device(each.alias):
            there = RECORDS.load(directory, each.key)
            raise StateError(
                f"{each.disk} of snapshot {each.snapshot} is attached to {helper.name} already"
                + (f", as {there.target}" if there else ""),
                names.command("snapmount", "detach", each.snapshot, helper.name),
            )


async def _check_block_sizes(record: Record, disks: Sequence[str], helper: hypervisor.Domain, bus: str) -> None:
    """Raise StateError if QEMU would show a disk on that bus with smaller blocks than the guest's."""
    for disk in _disks(record, disks):
        size = disk.logical_block_size_bytes
        fit = slots.buses_for([size], None)
        if bus not in fit and bus not in slots.buses_for([size], await helper.qemu_version(record.connect)):
            needed = ".".join(map(str, slots.QEMU_USB_BLOCK_SIZES))
            raise StateError(
                f"{disk.name} has logical blocks of {size} bytes, in which partition tables count; on {bus}, QEMU "
                f"before {needed}, as {helper.name} runs in, shows every disk with blocks of {DEFAULT_BLOCK_SIZE}",
                f"--bus {' or '.join(fit)}",
            )


def _disks(record: Record, wanted: Sequence[str]) -> list[Disk]:
    return [disk for disk in record.snapshot.disks if disk.name in wanted]


@contextlib.contextmanager
def _explained(
    request: AttachRequest, record: Record, helper: hypervisor.Domain, helper_xml: str, disks: Sequence[str]
) -> Iterator[None]:
    """Add what helps to the error of a helper that has no free slot for a disk."""
    try:
        yield
    except StateError as error:
        if not slots.lacks_slot(error.message):
            raise
        sizes = [disk.logical_block_size_bytes for disk in _disks(record, disks)]
        bus = slots.bus_with_room(helper_xml, slots.buses_for(sizes, None), len(disks))
        chosen = [word for disk in request.disks for word in ("--disk", disk)]
        again = names.command("snapmount", "attach", record.id, helper.name, *chosen, "--bus", bus or "")
        raise StateError(error.message, again if bus else slots.more_slots(helper_xml)) from error


async def _plug(
    record: Record, directory: Path, helper: hypervisor.Domain, helper_xml: str, planned: Attachment
) -> Attachment:
    log.info("plugging %s into %s as %s", planned.disk, helper.name, planned.target)
    [disk] = _disks(record, [planned.disk])
    await helper.plug(
        slots.disk_xml(
            helper_xml,
            f"{record.mountpoint}/{disk.file}",
            alias=planned.alias,
            serial=planned.serial,
            bus=planned.bus,
            target=planned.target,
            block_bytes=disk.logical_block_size_bytes,
        )
    )
    made = replace(planned, is_made=True)
    _write(directory, made)
    return made


def _write(directory: Path, planned: Attachment) -> None:
    try:
        RECORDS.write(directory, planned)
    except OSError as error:
        raise StateError(f"the record of {planned.name} cannot be written to {directory}: {error.strerror}") from error


async def _give_up(directory: Path, helper: hypervisor.Domain, planned: Sequence[Attachment]) -> None:
    """Take off what was plugged in, after something has failed already: a second error must not hide the first one."""
    for each in reversed(planned):
        try:
            await _unplug(directory, helper, each, LET_GO_S)
        except SnapmountError as error:
            detach = names.command("snapmount", "detach", each.snapshot, helper.name)
            log.warning("%s; `%s` tries again", error.message, detach)


# -- detach ------------------------------------------------------------------------------------------------------------


async def _unplug_all(
    connection: hypervisor.Hypervisor, directory: Path, attached: Sequence[Attachment], patience_s: float
) -> tuple[list[Attachment], list[SnapmountError]]:
    """Unplug them side by side, and forget those that are gone: those that were plugged in, and an error for each that
    is not gone.
    """
    errors: list[SnapmountError] = []
    unplugged: list[Attachment] = []

    async def unplug(each: Attachment) -> None:
        was_there = each.qemu.runs()
        try:
            await _unplug(directory, await connection.domain_by_uuid(each.vm_uuid), each, patience_s)
        except SnapmountError as error:
            errors.append(error)
        else:
            unplugged.extend([each] * was_there)

    async with trio.open_nursery() as nursery:
        for each in attached:
            nursery.start_soon(unplug, each)
    return sorted(unplugged, key=attached.index), errors


async def _unplug(directory: Path, helper: hypervisor.Domain | None, attached: Attachment, patience_s: float) -> None:
    """Unplug one and forget it.  Raises StateError if the guest does not let go, UnreachableError."""
    log.info("unplugging %s from %s", attached.target, attached.vm_name)
    why = helper and await helper.unplug(attached.alias, patience_s)
    if why:
        again = names.command("snapmount", "detach", attached.snapshot, attached.vm_name)
        reset = names.command("virsh", "reset", attached.vm_name)
        raise StateError(
            f"{attached.vm_name} still has {attached.target}, which is {attached.disk} of snapshot "
            f"{attached.snapshot}: {why}",
            f"{again}   (again, when the guest reacts; at worst: {reset})",
        )
    RECORDS.forget(directory, attached)
