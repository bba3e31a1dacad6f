"""Boots a scratch VM: a throw-away copy of a VM, whose disks are private overlays over the files of a snapshot."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import trio

from .. import hypervisor
from ..core import names
from ..core.user import User
from ..errors import LeftoverError, NotBootedError, NotFoundError, SnapmountError, StateError, UsageError
from ..host import blocking, datadirectory, execution, kvm, usage
from ..host.processes import Process
from ..hypervisor import directories
from ..hypervisor.kvm import is_open_to
from ..images import qcow2
from ..publish import views
from ..records import journal
from ..records.record import Record
from ..records.store import Store
from . import check, definition, scratchvm, tending
from .check import Came, WaitFor
from .definition import CopyRequest, Derived
from .hardware import ISOLATED, NONE, Source
from .scratchvm import ScratchVm

log = logging.getLogger(__name__)

SLOW_S = 5.0  # for the start of a VM: most take one or two
HOST_S = 30.0
NAME_MAX = 240  # bytes: libvirt makes names of files of it, such as NAME.xml.new, NAME-swtpm.log and, escaped, NAME.pid


@dataclass(frozen=True)
class BootRequest:
    """How the scratch VM shall be."""

    name: str | None = None  # None: one that is made up
    memory_kib: int | None = None  # None: as the original's, and so on
    vcpus: int | None = None
    network: str = NONE
    overlay_dir: str | None = None
    is_kept: bool = False
    wait_for: WaitFor | None = None
    wait_timeout_s: float = check.WAIT_TIMEOUT_S
    console: bool = False  # it shall be connected to


def check_name(name: str) -> str:
    """The name, where a VM can have it.  Raises UsageError."""
    if not name.isprintable() or not name.strip() or "/" in name or name in (".", ".."):
        raise UsageError(f"{name!r} cannot be the name of a VM")
    length = _length(name)
    if length > NAME_MAX:
        raise UsageError(f"{name!r} is too long for the name of a VM: {length} bytes, of at most {NAME_MAX}")
    return name


def default_name(original: str, own_uuid: str) -> str:
    """The original's, cut where it would be too long, and four digits."""
    suffix = f"-scratch-{own_uuid[:4]}"
    while _length(original + suffix) > NAME_MAX:
        original = original[:-1]
    return original + suffix


def _length(name: str) -> int:
    """In bytes, escaped as libvirt does it in the name of the pid file (virBufferEscapeString)."""
    return len(escape(name, {"'": "&apos;", '"': "&quot;"}).encode())


async def run(request: BootRequest, record: Record, store: Store) -> tuple[ScratchVm, Came | None]:
    """Boot a scratch VM on an active snapshot, and wait for what the request says; None if it says nothing.

    Raises NotBootedError if that does not come; the scratch VM is left running then.  Any other SnapmountError means
    that nothing was left behind.
    """
    directory = store.path(record.id)
    came = None
    store.check_active(record, "booted")
    domain_xml = await _definition(record)
    user = hypervisor.qemu_user(domain_xml)
    await views.check(record, user, "QEMU")
    async with hypervisor.connected(record.connect) as connection:
        vm = await _plan(request, record, connection, definition.accelerator(domain_xml), user)
        derived = definition.derive(domain_xml, _wish(request, record, vm))
        _check_possible(request, derived, record)
        vm = replace(vm, left_out=derived.left_out, notes=(*vm.notes, *derived.notes), has_console=derived.has_console)
        _write(directory, vm, record)
        record.server.send(tending.WAKE_SIGNAL)  # it undoes what we make, should we be killed
        try:
            store.check_active(record, "booted")  # not before: what ends the snapshot looks for the record
            await journal.write(record, store, vm.overlays, user.uid, vm.uuid)
            await _make_files(record, vm, user)
            with told_if_slow(vm.name):
                domain = await connection.start(derived.xml, persistent=request.is_kept)
            vm = await _started(vm, domain, record)
            _write(directory, vm, record)
            record.server.send(tending.WAKE_SIGNAL)
            if request.wait_for:
                came = await check.wait(request.wait_for, request.wait_timeout_s, vm, record.connect)
        except NotBootedError:
            raise
        except BaseException as error:
            with trio.CancelScope(shield=True):
                left = await _undo(record, directory, vm)
            if left and isinstance(error, trio.Cancelled):  # "interrupted" would say that it has been undone
                raise left from None
            raise
    return vm, came


async def is_vm(word: str, uri: str) -> bool:
    """Whether libvirt has a VM of that name or uuid.  Raises UnreachableError."""
    async with hypervisor.connected(uri) as connection:
        try:
            await connection.domain(word)
        except NotFoundError:
            return False
    return True


async def _definition(record: Record) -> str:
    """The original's definition at the snapshot's moment."""
    path = Path(record.mountpoint) / "domain.xml"
    return (await blocking.on_path(path, HOST_S, path.read_bytes)).decode("utf-8", "surrogateescape")


async def _plan(
    request: BootRequest, record: Record, connection: hypervisor.Hypervisor, original_accelerator: str, user: User
) -> ScratchVm:
    """Decide; make nothing yet."""
    own = str(uuid.uuid4())
    while await connection.domain_by_uuid(own):  # what is undone would be that VM
        own = str(uuid.uuid4())
    name = request.name or default_name(record.snapshot.vm_name, own)
    await connection.check_name_is_free(name)
    if request.network not in (NONE, ISOLATED):
        await connection.check_network(request.network)
    parent = Path(request.overlay_dir or datadirectory.path())
    names.check_utf_8(str(parent), "the overlay directory")
    accelerator, notes = original_accelerator, list[str]()
    if accelerator == definition.KVM and not await is_open_to(user, kvm.DEVICE):
        accelerator = definition.TCG
        notes.append(f"it runs without KVM, and so slowly: {kvm.DEVICE} is not open to QEMU's user (uid {user.uid})")
    overlays = parent / scratchvm.overlays_name(record.id, own)
    return ScratchVm(
        name=name,
        uuid=own,
        accelerator=accelerator,
        overlays=str(overlays),
        is_kept=request.is_kept,
        process=Process.of_pid(os.getpid()),
        notes=tuple(notes),
    )


def _wish(request: BootRequest, record: Record, vm: ScratchVm) -> CopyRequest:
    snapshot = record.snapshot
    return CopyRequest(
        name=vm.name,
        uuid=vm.uuid,
        description=f"scratch VM of {snapshot.vm_name}, on snapshot {snapshot.id} (snapmount)",
        accelerator=vm.accelerator,
        disks={disk.name: Source(vm.overlay(disk.name), f"{record.mountpoint}/{disk.file}") for disk in snapshot.disks},
        nvram=vm.nvram,
        has_nvram=snapshot.nvram is not None,
        console_log=vm.console_log,
        snapshot=snapshot.id,
        network=request.network,
        memory_kib=request.memory_kib,
        vcpus=request.vcpus,
    )


def _check_possible(request: BootRequest, derived: Derived, record: Record) -> None:
    """Raise StateError if what shall be waited for can never come, or connected to is not there."""
    wait_for, name = request.wait_for, record.snapshot.vm_name
    if wait_for and wait_for.pattern and not derived.has_console:
        raise StateError(f"{name} has no serial console", "--wait-for with agent, or a span of time")
    if wait_for and wait_for.agent and not derived.has_agent_channel:
        raise StateError(f"{name} has no channel for a guest agent", "--wait-for with a span of time")
    if request.console and not derived.has_console:
        raise StateError(f"{name} has no serial console, which --console needs", "no --console")


def _write(directory: Path, vm: ScratchVm, record: Record) -> None:
    try:
        scratchvm.write(directory, vm)
    except OSError as error:
        raise StateError(f"the record of {vm.name} cannot be written to {directory}: {error.strerror}") from error


async def _make_files(record: Record, vm: ScratchVm, user: User) -> None:
    """The directory, the overlays in it, and the copy of the firmware's variables.  Raises SpaceError, StateError."""
    directory = Path(vm.overlays)
    parent = directory.parent
    await blocking.on_path(parent, HOST_S, usage.free_bytes, parent, usage.OVERLAY)
    await directories.create(directory, user, None, usage.OVERLAY)
    for disk in record.snapshot.disks:
        overlay, backing = vm.overlay(disk.name), f"{record.mountpoint}/{disk.file}"
        await qcow2.create(overlay, disk.size_bytes, user, backing=backing, what="the overlay")
    if record.snapshot.nvram:
        await _copy(f"{record.mountpoint}/{record.snapshot.nvram.file}", vm.nvram, user)


async def _copy(variables: str, target: str, user: User) -> None:
    """Copy the firmware's variables, as QEMU's user: the directory is that user's, who could have put a link there."""
    command = ["dd", f"if={variables}", f"of={target}", "bs=1M", "conv=excl", "status=none"]
    what = f"the firmware's variables {variables} cannot be copied"
    await execution.output(command, HOST_S, what, StateError, **directories.as_user(user))


@contextlib.contextmanager
def told_if_slow(name: str) -> Iterator[None]:
    """Say so where the start of the VM, which is the block, takes long: libvirt is waited for minutes."""
    why = f"it may be probing QEMU, as it does each time where QEMU's user cannot open {kvm.DEVICE} (snapmount doctor)"
    timer = threading.Timer(SLOW_S, log.warning, ["libvirt is starting %s: %s", name, why])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


async def _started(vm: ScratchVm, domain: hypervisor.Domain, record: Record) -> ScratchVm:
    """The record of the VM once its QEMU runs.  Raises StateError if it has ended already, or cannot be found."""
    found = await domain.qemu(record.connect)
    try:
        if found is None:
            raise ProcessLookupError
        process = Process.of_pid(found.pid)
    except OSError:
        if await domain.is_active():
            raise StateError(domain.why_no_qemu(record.connect)) from None
        raise StateError(f"{vm.name} has ended as soon as it was started") from None
    return replace(vm, process=process, is_started=True, pid_file=str(found.pid_file))


async def _undo(record: Record, directory: Path, vm: ScratchVm) -> LeftoverError | None:
    """Remove it after something has failed already: a second error must not hide the first one.  What is left all the
    same is logged, and returned.
    """
    try:
        await tending.end(record, directory, vm)
    except SnapmountError as error:
        delete = names.command("snapmount", "delete", "--force", record.id)
        log.warning("%s; `%s` tries again", error.message, delete)
        return LeftoverError(f"interrupted, but {vm.name} could not be removed: {error.message}", delete)
    return None
