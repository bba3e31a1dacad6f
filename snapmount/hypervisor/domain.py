"""VMs and their backup jobs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import libvirt
import trio

from ..core import domainxml, mark, names
from ..errors import UnreachableError
from ..host import blocking, qemu
from ..host.qemu import Qemu
from .agent import Agent
from .blockjobs import BlockJobs
from .calls import call, change, explained, refusal
from .checkpoints import Checkpoints
from .disksize import DiskSize, disk_sizes
from .identity import version_of
from .uri import pid_directory

BEGIN_S = 35.0  # libvirt waits 30 s for another job of the VM, and then says which
JOB_END_S = 20.0  # where AppArmor confines QEMU, libvirt loads its profile anew for each disk
FIND_S = 10.0
POLL_S = 0.05

# whatever the VM has come to have: a kept one may have been saved, for instance
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)

_ENDED = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)  # what libvirt says of a VM that does not run

_WHY_SHUT_OFF = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "was shut down",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "was destroyed",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "has crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: "was migrated away",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "was saved",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "failed to start",
}

_WHY_PAUSED = {
    libvirt.VIR_DOMAIN_PAUSED_USER: ", by somebody",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: ": a disk has had an I/O error",
}


class DiskError(Enum):
    """What QEMU may pause a guest for by itself (error_policy in libvirt's domain format)."""

    NO_SPACE = "a write found no space"
    OTHER = "a read or write failed"


class Domain:
    """A VM."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()
        self.agent = Agent(handle, self.name)
        self.block_jobs = BlockJobs(handle, self.name)
        self.checkpoints = Checkpoints(handle, self.name)

    async def xml(self) -> str:
        """The definition of the running VM, without its secrets."""
        with explained(f"{self.name}: read the definition"):
            return await call("read the definition", self._handle.XMLDesc)

    async def is_active(self) -> bool:
        """Whether it runs (or is paused)."""
        with explained(f"{self.name}: read the state"):
            return bool(await call("read the state", self._handle.isActive))

    async def is_saved(self) -> bool:
        """Whether it is shut off with its memory saved, from which it goes on at its next start (managed save)."""
        with explained(f"{self.name}: read the state"):
            return bool(await call("ask for a managed save", self._handle.hasManagedSaveImage))

    async def run_id(self) -> int:
        """The number that libvirt has given to this run of the VM; -1 where it is shut off."""
        with explained(f"{self.name}: read the state"):
            return await call("read the id", self._handle.ID)

    async def scratch_vm_of(self) -> str | None:
        """The snapshot whose scratch VM it is, by its mark (core/mark.py); None for any other VM, and for one that is
        gone.  Raises UnreachableError.
        """
        element, uri = libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark.URI
        try:
            found = await call("read the metadata", self._handle.metadata, element, uri)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, *_ENDED):
                return None
            raise UnreachableError(f"{self.name}: read the metadata: {error}") from error
        return mark.snapshot_of(found)

    async def is_shutting_down(self) -> bool:
        """Whether its guest has shut it down, and its QEMU is to end or to start anew.  Raises UnreachableError."""
        try:
            state, _ = await call("read the state", self._handle.state)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise UnreachableError(f"{self.name}: read the state: {error}") from error
        return bool(state == libvirt.VIR_DOMAIN_SHUTDOWN)

    async def why_shut_off(self) -> str | None:
        """'was shut down', 'was destroyed' and so on; None if it runs."""
        with explained(f"{self.name}: read the state"):
            try:
                state, reason = await call("read the state", self._handle.state)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return "is gone"
                raise
        return _WHY_SHUT_OFF.get(reason, "is shut off") if state == libvirt.VIR_DOMAIN_SHUTOFF else None

    async def disk_sizes(self) -> dict[str, DiskSize]:
        """The sizes of each disk, by its name."""
        return disk_sizes(await self._block_stats())

    async def _block_stats(self) -> dict[str, Any]:
        connection = self._handle.connect()
        with explained(f"{self.name}: read the disks' sizes"):
            ((_, stats),) = await call(
                "read the disks' sizes",
                connection.domainListGetStats,
                [self._handle],
                libvirt.VIR_DOMAIN_STATS_BLOCK,
                libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING,
            )
        return dict(stats)

    async def backup_job(self) -> str | None:
        """The XML of the backup job that runs now, None if none does."""
        try:
            return await call("read the backup job", self._handle.backupGetXMLDesc)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, *_ENDED):
                return None
            raise UnreachableError(f"{self.name}: read the backup job: {error}") from error

    async def has_job_at(self, socket: str) -> bool:
        """Whether the backup job that runs is the one whose NBD server listens on that socket."""
        job = await self.backup_job()
        return job is not None and domainxml.backup_socket(job) == socket

    async def begin_backup(
        self, job_xml: str, deadline_s: float = BEGIN_S, *, checkpoint_xml: str | None = None
    ) -> None:
        """Start a pull-mode backup job, whose scratch files exist: the VM's point in time, and that of a checkpoint.

        Raises StateError if QEMU or libvirt refuses, UnreachableError at the deadline.
        """
        arguments = (job_xml, checkpoint_xml, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
        try:
            await change("start the backup job", self._handle.backupBegin, *arguments, deadline_s=deadline_s)
        except libvirt.libvirtError as error:
            raise refusal(f"{self.name}: the backup job cannot be started", error) from error

    async def end_backup(self, socket: str) -> None:
        """End the backup job whose NBD server listens on that socket and wait until it is gone; no such job is fine.

        Raises UnreachableError if that cannot be had.
        """
        with trio.move_on_after(JOB_END_S):
            if not await self._has_or_starts_job_at(socket):
                return
            with contextlib.suppress(libvirt.libvirtError):  # it may end by itself at this moment; the loop below tells
                await call("end the backup job", self._handle.abortJob, deadline_s=math.inf)
            is_told = False
            while await self.has_job_at(socket):
                if not is_told and await self.is_shutting_down():
                    await self._let_libvirt_notice(socket)
                    is_told = True
                await trio.sleep(POLL_S)
            return
        raise UnreachableError(f"{self.name}: the backup job has not ended within {JOB_END_S:g} s")

    async def _let_libvirt_notice(self, socket: str) -> None:
        """Let libvirt notice that the job has ended with QEMU, whose guest has shut down.

        It has one thread for what QEMUs tell.  A guest agent that ends, as it does at each shutdown, keeps that waiting
        for the end of the job, which it would have noticed next, until it gives up after 30 s: for so long the VM is
        'in shutdown' (processSerialChangedEvent() in qemu_driver.c, virDomainObjBeginJobInternal()).  A call to end the
        job of a disk looks itself at what QEMU has told, though it fails since QEMU is gone.
        """
        job = await self.backup_job()
        if job is None or domainxml.backup_socket(job) != socket:
            return
        for disk in domainxml.scratch_indexes(job):
            with contextlib.suppress(libvirt.libvirtError):
                await call(f"end the job of {disk}", self._handle.blockJobAbort, disk, 0, deadline_s=math.inf)

    async def _has_or_starts_job_at(self, socket: str) -> bool:
        """The same as has_job_at(), but a job that is being started just now, of which libvirt tells nothing else, is
        waited for: our own start may have been given up at its deadline.
        """
        while (job := await self.backup_job()) is None and await self._is_starting_backup():
            await trio.sleep(POLL_S)
        return job is not None and domainxml.backup_socket(job) == socket

    async def _is_starting_backup(self) -> bool:
        with explained(f"{self.name}: ask for its job"):
            try:
                job: dict[str, Any] = await call("ask for its job", self._handle.jobStats)
            except libvirt.libvirtError as error:
                if error.get_error_code() in _ENDED:
                    return False
                raise
        return bool(job.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP)

    async def scratch_indexes(self, socket: str) -> dict[str, int]:
        """The index of each disk's scratch, see domainxml; none where the job at that socket does not run."""
        job = await self.backup_job()
        return domainxml.scratch_indexes(job) if job and domainxml.backup_socket(job) == socket else {}

    async def written(self) -> dict[tuple[str, int], int]:
        """How far each image is written that is open for writing, in bytes, by its disk's name and its index."""
        stats = await self._block_stats()
        blocks = [f"block.{number}" for number in range(stats["block.count"])]
        return {
            (stats[f"{block}.name"], stats[f"{block}.backingIndex"]): stats[f"{block}.allocation"]
            for block in blocks
            if f"{block}.backingIndex" in stats and f"{block}.allocation" in stats
        }

    async def layers(self) -> list[tuple[str, str]]:
        """The files and block devices of its disks, backing files and scratch included, each with its disk's name; of a
        network disk what libvirt calls its path.  Raises UnreachableError.
        """
        stats = await self._block_stats()
        blocks = [f"block.{number}" for number in range(stats["block.count"])]
        return [(stats[f"{block}.name"], path) for block in blocks if (path := stats.get(f"{block}.path"))]

    async def set_threshold(self, disk: str, index: int, length: int) -> None:
        """Let an event come when the image of that index is written beyond this length in bytes; once.

        Raises UnreachableError.
        """
        with explained(f"{self.name}: set a threshold for {disk}[{index}]"):
            await call("set a threshold", self._handle.setBlockThreshold, f"{disk}[{index}]", length)

    async def stopped_by(self) -> DiskError | None:
        """The error of a disk that it is paused by; None if it is not, or by somebody, or has ended.

        Which one may be of the past: QEMU keeps the first error of a disk, also when the VM has gone on (it forgets
        those of named block backends only, which libvirt does not use any more).  Raises UnreachableError.
        """
        try:
            state = await call("read the state", self._handle.state)
            if tuple(state) != (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
                return None
            errors = await call("read the disks' errors", self._handle.diskErrors)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _ENDED:
                return None
            raise UnreachableError(f"{self.name}: read the state: {error}") from error
        lacks_space = libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in errors.values()
        return DiskError.NO_SPACE if lacks_space else DiskError.OTHER

    async def resume(self) -> None:
        """Let it run on, and try the writes again that have paused it.  Raises UnreachableError."""
        try:
            await call(f"resume {self.name}", self._handle.resume)
        except libvirt.libvirtError as error:
            raise UnreachableError(
                f"{self.name} is paused, and cannot be resumed: {error}", names.command("virsh", "resume", self.name)
            ) from error

    async def is_persistent(self) -> bool:
        """Whether it is defined, and not only runs.  Raises UnreachableError."""
        with explained(f"{self.name}: ask whether it is defined"):
            return bool(await call("ask whether it is defined", self._handle.isPersistent))

    async def why_paused(self) -> str | None:
        """'it is paused', and why where that is known; None if it is not.  Raises UnreachableError."""
        if await self.stopped_by() is DiskError.NO_SPACE:
            return "it is paused: there is no space for what it writes"
        with explained(f"{self.name}: read the state"):
            state, reason = await call("read the state", self._handle.state)
        if state != libvirt.VIR_DOMAIN_PAUSED:
            return None
        return "it is paused" + _WHY_PAUSED.get(reason, "")

    async def has_device(self, alias: str) -> bool:
        """Whether the running VM has the device of that alias, also one that its guest shall let go of.

        A shut-off or vanished VM has none, where it was plugged into the running one only.  Raises UnreachableError.
        """
        try:
            xml = await call("read the definition", self._handle.XMLDesc)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise UnreachableError(f"{self.name}: read the definition: {error}") from error
        return domainxml.has_device(xml, alias)

    async def plug(self, device_xml: str) -> None:
        """Plug a device into the running VM, not into its persistent definition.  Raises StateError if libvirt or
        QEMU refuses.
        """
        try:
            await change("plug a device", self._handle.attachDeviceFlags, device_xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise refusal(f"{self.name}: the device cannot be plugged in", error) from error

    async def unplug(self, alias: str, patience_s: float) -> str | None:
        """Ask the guest to let go of a device and wait until it is gone; return why it is not, None if it is.

        Only the guest can do it, and may take its time (virDomainDetachDeviceFlags).  No such device is fine.  Raises
        UnreachableError.
        """
        why = ""
        try:
            await call("unplug a device", self._handle.detachDeviceAlias, alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            why = f" ({error})"  # it may have gone meanwhile, or have been asked to go already: what follows tells
        with trio.move_on_after(patience_s):
            while await self.has_device(alias):
                await trio.sleep(POLL_S)
            return None
        return f"the guest has not let go of it within {patience_s:g} s{why}"

    async def stop(self) -> None:
        """Destroy it where it runs.  Raises UnreachableError."""
        await self._end("destroy", self._handle.destroy)

    async def remove(self) -> None:
        """Destroy it where it runs, and undefine it where it is defined.  Raises UnreachableError."""
        await self.stop()
        await self._end("undefine", partial(self._handle.undefineFlags, _UNDEFINE))

    async def _end(self, what: str, function: Callable[[], Any]) -> None:
        """No such VM, or not in the state that this would end, is fine."""
        try:
            await call(f"{what} {self.name}", function)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _ENDED:
                raise UnreachableError(
                    f"{self.name} cannot be removed ({what}): {error}", names.command("virsh", what, self.name)
                ) from error

    async def qemu(self, uri: str) -> Qemu | None:
        """The QEMU that it runs in; None if it does not run, or its process cannot be found."""
        try:
            return await blocking.call(FIND_S, qemu.find, self.uuid, pid_directory(uri))
        except trio.TooSlowError:
            return None

    def why_no_qemu(self, uri: str) -> str:
        """What is wrong where it runs, and qemu() finds none."""
        return f"the QEMU process of {self.name} cannot be found: no file in {pid_directory(uri)} names it"

    async def qemu_version(self, uri: str) -> tuple[int, ...] | None:
        """The version of the QEMU that the VM runs in, which may be older than the one that is installed now; None
        where it cannot be told.
        """
        found = await self.qemu(uri)
        return await version_of(found.pid) if found else None
