"""The source for a running VM: libvirt's pull-mode backup job.

QEMU keeps the point in time: before the guest overwrites a cluster, its old content is copied into the qcow2 scratch
file, and a read of the NBD export is served from there or else from the origin.  All disks of one job are of one
moment. https://libvirt.org/kbase/live_full_disk_backup.html ; QEMU: docs/interop/live-block-operations.rst, "Live disk
backup".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import trio

from ...core import domainxml, names
from ...errors import StateError, UnreachableError
from ...host.processes import is_stopped
from ...hypervisor import Domain, connected
from ...hypervisor.domain import BEGIN_S
from ...records.kept import HasSource, Kept
from ...records.record import Record
from . import state
from .scratch import files

log = logging.getLogger(__name__)

QEMU_DIRECTORY = Path("/var/lib/libvirt/qemu")
EXPLAIN_S = 90.0  # libvirt itself may wait 30 s for another of its jobs before it tells of the end of a VM
JOB_ENDS_S = 5.0  # after its export: QEMU takes part of a second, a busy host more
LOST_CONNECTION = "QEMU has closed the connection"
POLL_S = 0.1


def socket_path(run_id: int, snapshot_id: str, scratch: Path) -> str:
    """Where QEMU shall listen.

    libvirt keeps a private directory for each running VM, and its AppArmor profile lets QEMU make any file there
    (virt-aa-helper: "/var/lib/libvirt/qemu/domain-ID-NAME/*" rw); if there is none, as in a user's session, the
    scratch directory serves.  Raises StateError if the path would be too long for a unix socket.
    """
    private = sorted(QEMU_DIRECTORY.glob(f"domain-{run_id}-*")) if run_id >= 0 else []
    candidates = [directory / f"{names.directory(snapshot_id)}.sock" for directory in private] + [scratch / "nbd.sock"]
    for path in candidates:
        if len(bytes(path)) <= names.SOCKET_PATH_MAX:
            return str(path)
    raise StateError(f"the path of the socket {candidates[-1]} is too long", "a --scratch-dir with a shorter path")


async def begin(
    domain: Domain, record: Record, deadline_s: float = BEGIN_S, *, checkpoint_xml: str | None = None
) -> None:
    """Start the job that the record describes, whose scratch files are there, and make the checkpoint.  Raises
    StateError.
    """
    snapshot, kept = record.snapshot, state.of(record)
    scratch_files = {disk.name: files.path(record, disk.name) for disk in snapshot.disks}
    left_out = [each.name for each in snapshot.left_out]
    since = {each.disk: snapshot.since for each in kept.increments if snapshot.since}
    job_xml = domainxml.backup_job(kept.socket, scratch_files, left_out, dict(kept.policy.devices), since)
    await domain.begin_backup(job_xml, deadline_s, checkpoint_xml=checkpoint_xml)


async def end(kept: Kept) -> None:
    """End the job, if it still runs, and let a guest go on that an error of a disk has paused.

    Idempotent.  Raises UnreachableError.
    """
    async with connected(kept.connect) as hypervisor:
        domain = await hypervisor.domain_by_uuid(kept.vm_uuid)
        if domain is None:
            return
        try:
            await end_on(domain, kept)
        except UnreachableError as error:
            found = await domain.qemu(kept.connect)
            if found is None or not is_stopped(found.pid):
                raise
            raise UnreachableError(
                f"{error.message}: its QEMU, process {found.pid}, is stopped",
                names.command("kill", "-CONT", str(found.pid)),
            ) from error


async def end_on(domain: Domain, kept: HasSource) -> None:
    """End the job, and let a guest go on that an error of a disk has paused.  Raises UnreachableError."""
    await domain.end_backup(state.of(kept).socket)
    await resume_stopped(domain)


async def resume_stopped(domain: Domain) -> None:
    """Let a guest go on that is paused because a write found no space, as it does where the scratch is full, or failed,
    as it may where the scratch does.

    QEMU tries that write again, and the guest is none the wiser; if it is its own disks that fail, it stops again.
    A pause of another kind is somebody's will.  Raises UnreachableError.
    """
    error = await domain.stopped_by()
    if error:
        log.warning("%s was paused because %s: it goes on", domain.name, error.value)
        await domain.resume()


async def explain_loss(record: Record, tell: Callable[[str], None]) -> None:
    """Tell why QEMU has ended the export, in words that follow a colon: 'vm1 was destroyed'.

    QEMU closes the connection before libvirt has told the end of the VM or of the job, and a VM that is shut down loses
    its job first, seconds before its end on a busy host.  So the reason is told as it is known so far, and told again
    while the VM is looked at for its end.  A job that ends later than JOB_ENDS_S has been ended by ourselves.  A VM
    that is shut down is known before its end; but a QEMU that is destroyed tells libvirt at first that it is.
    """
    name = record.snapshot.vm_name
    reason = LOST_CONNECTION
    ours_s = trio.current_time() + JOB_ENDS_S
    with trio.move_on_after(EXPLAIN_S):
        try:
            async with connected(record.connect) as hypervisor:
                while True:
                    domain = await hypervisor.domain_by_uuid(record.snapshot.vm_uuid)
                    if domain is None:
                        return tell(f"{name} is gone")
                    may_be_others = reason == LOST_CONNECTION and trio.current_time() < ours_s
                    if may_be_others and await domain.is_shutting_down():
                        reason = f"{name} was shut down"
                        tell(reason)
                    elif may_be_others and not await domain.has_job_at(state.of(record).socket):
                        reason = "the backup job was ended by somebody else"
                        tell(reason)
                    why = await domain.why_shut_off()
                    if why:
                        return None if reason == f"{name} {why}" else tell(f"{name} {why}")
                    await trio.sleep(POLL_S)
        except UnreachableError as error:
            tell(f"{reason} ({error.message})")
