"""libvirt: connections, domains and their backup jobs.  The only module that imports the libvirt binding.

Every call runs in a thread under a deadline; libvirt's errors become SnapmountErrors.  API:
https://libvirt.org/html/libvirt-libvirt-domain.html
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import libvirt
import trio

from . import blocking
from .core import domainxml, names
from .core.user import User
from .errors import MissingError, NotFoundError, SnapmountError, StateError, UnreachableError, UsageError

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_S = 30.0
BEGIN_S = 120.0  # making scratch files on a slow disk takes its time
JOB_END_S = 60.0
START_S = 120.0  # a VM, on a busy host
POLL_S = 0.05

# libvirt prints each error to stderr unless it is told otherwise
libvirt.registerErrorHandler(lambda _context, _error: None, None)

# whatever the VM has come to have: a kept one may have been saved, for instance
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)

_WHY_SHUT_OFF = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "was shut down",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "was destroyed",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "has crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: "was migrated away",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "was saved",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "failed to start",
}


def default_uri() -> str:
    """As virsh does: $LIBVIRT_DEFAULT_URI, else qemu:///system for root and qemu:///session for others."""
    return os.environ.get("LIBVIRT_DEFAULT_URI") or ("qemu:///system" if os.geteuid() == 0 else "qemu:///session")


def check_uri(uri: str) -> None:
    """Raise UsageError for a connection that is not to QEMU on this host: its disks and sockets would be elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme not in ("qemu", "qemu+unix"):
        raise UsageError(f"{uri}: only QEMU/KVM can be used, by a URI such as qemu:///system")
    if parts.netloc:
        raise UsageError(
            f"{uri}: snapmount must run on the host of the VM", names.command("ssh", parts.netloc, "snapmount ...")
        )


def is_unprivileged(uri: str) -> bool:
    """Whether the URI names a user's own daemon."""
    return urlsplit(uri).path == "/session"


async def _call(what: str, function: Callable[..., T], *args: Any, deadline_s: float = CALL_S) -> T:
    """Run a libvirt call.  A libvirtError passes; a call that does not end raises UnreachableError."""
    try:
        return await blocking.call(deadline_s, function, *args)
    except trio.TooSlowError:
        raise UnreachableError(f"libvirt did not answer within {deadline_s:g} s: {what}") from None


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a libvirtError into an UnreachableError that says what was being done."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise UnreachableError(f"{what}: {error}") from error


@contextlib.asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Hypervisor]:
    """A connection to libvirt.  Raises UnreachableError."""
    try:
        connection = await _call(f"connect to {uri}", libvirt.open, uri)
    except libvirt.libvirtError as error:
        raise UnreachableError(
            f"libvirt cannot be reached at {uri}: {error}", names.command("virsh", "-c", uri, "list")
        ) from error
    try:
        yield Hypervisor(connection, uri)
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(SnapmountError, libvirt.libvirtError):
            await _call("close the connection", connection.close, deadline_s=5)


class Hypervisor:
    """A connection to libvirt."""

    def __init__(self, connection: Any, uri: str) -> None:
        self._connection = connection
        self._uri = uri

    async def domain(self, name: str) -> Domain:
        """The VM of that name or uuid.  Raises NotFoundError, with near names in its message."""
        for look_up in (self._connection.lookupByName, self._connection.lookupByUUIDString):
            try:
                return Domain(await _call(f"look up {name}", look_up, name))
            except UnicodeEncodeError:
                break  # libvirt's names are UTF-8: there is none such
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise UnreachableError(f"{name}: {error}") from error
        with _explained("list the VMs"):
            known = [each.name() for each in await _call("list the VMs", self._connection.listAllDomains)]
        near = names.near(name, known)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise NotFoundError(
            f"there is no VM {name!r} at {self._uri}{hint}", names.command("virsh", "-c", self._uri, "list", "--all")
        )

    async def domain_by_uuid(self, uuid: str) -> Domain | None:
        """The VM of that uuid, None where libvirt knows it no more."""
        try:
            return Domain(await _call(f"look up {uuid}", self._connection.lookupByUUIDString, uuid))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise UnreachableError(f"{uuid}: {error}") from error

    async def check_name_is_free(self, name: str) -> None:
        """Raise StateError where a VM has the name."""
        with _explained("list the VMs"):
            known = [each.name() for each in await _call("list the VMs", self._connection.listAllDomains)]
        if name in known:
            raise StateError(f"there is a VM {name!r} at {self._uri} already", "another --name")

    async def check_network(self, name: str) -> None:
        """Raise NotFoundError where there is no such network, StateError where it is not active."""
        with _explained("list the networks"):
            networks = await _call("list the networks", self._connection.listAllNetworks)
            found = {network.name(): bool(network.isActive()) for network in networks}
        if name not in found:
            near = names.near(name, found)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise NotFoundError(
                f"there is no network {name!r} at {self._uri}{hint}",
                names.command("virsh", "-c", self._uri, "net-list", "--all"),
            )
        if not found[name]:
            raise StateError(
                f"the network {name!r} is not active", names.command("virsh", "-c", self._uri, "net-start", name)
            )

    async def start(self, domain_xml: str, *, persistent: bool) -> Domain:
        """Start a new VM, transient unless it shall be `persistent`.

        Raises StateError where libvirt or QEMU refuses; a persistent one may be defined then.
        """
        try:
            if not persistent:
                return Domain(
                    await _call("start the VM", self._connection.createXML, domain_xml, 0, deadline_s=START_S)
                )
            handle = await _call("define the VM", self._connection.defineXML, domain_xml)
            await _call("start the VM", handle.create, deadline_s=START_S)
            return Domain(handle)
        except libvirt.libvirtError as error:
            raise StateError(f"the VM cannot be started: {error}") from error


class Domain:
    """A VM."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()

    async def xml(self) -> str:
        """The definition of the running VM, without its secrets."""
        with _explained(f"{self.name}: read the definition"):
            return await _call("read the definition", self._handle.XMLDesc)

    async def is_active(self) -> bool:
        """Whether it runs (or is paused)."""
        with _explained(f"{self.name}: read the state"):
            return bool(await _call("read the state", self._handle.isActive))

    async def run_id(self) -> int:
        """The number that libvirt has given to this run of the VM; -1 where it is shut off."""
        with _explained(f"{self.name}: read the state"):
            return await _call("read the id", self._handle.ID)

    async def why_shut_off(self) -> str | None:
        """'was shut down', 'was destroyed' and so on; None where it runs."""
        with _explained(f"{self.name}: read the state"):
            state, reason = await _call("read the state", self._handle.state)
        return _WHY_SHUT_OFF.get(reason, "is shut off") if state == libvirt.VIR_DOMAIN_SHUTOFF else None

    async def allocation(self) -> dict[str, tuple[int, int]]:
        """Virtual size and allocated size in bytes of each disk, backing files included in the latter."""
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        connection = self._handle.connect()
        with _explained(f"{self.name}: read the disks' sizes"):
            ((_, stats),) = await _call(
                "read the disks' sizes",
                connection.domainListGetStats,
                [self._handle],
                libvirt.VIR_DOMAIN_STATS_BLOCK,
                flags,
            )
        virtual: dict[str, int] = {}
        allocated: dict[str, int] = {}
        for number in range(stats["block.count"]):
            name = stats[f"block.{number}.name"]
            # the top layer comes first
            virtual.setdefault(name, stats.get(f"block.{number}.capacity", 0))
            allocated[name] = allocated.get(name, 0) + stats.get(f"block.{number}.allocation", 0)
        return {name: (size, min(size, allocated[name])) for name, size in virtual.items()}

    async def backup_job(self) -> str | None:
        """The XML of the backup job that runs now, None where none does."""
        try:
            return await _call("read the backup job", self._handle.backupGetXMLDesc)
        except libvirt.libvirtError as error:
            gone = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
            if error.get_error_code() in gone:
                return None
            raise UnreachableError(f"{self.name}: read the backup job: {error}") from error

    async def has_job_at(self, socket: str) -> bool:
        """Whether the backup job that runs is the one whose NBD server listens on that socket."""
        job = await self.backup_job()
        return job is not None and domainxml.backup_socket(job) == socket

    async def begin_backup(self, job_xml: str) -> None:
        """Start a pull-mode backup job: the VM's point in time.  Raises StateError where QEMU or libvirt refuses."""
        try:
            await _call("start the backup job", self._handle.backupBegin, job_xml, None, deadline_s=BEGIN_S)
        except libvirt.libvirtError as error:
            raise StateError(f"{self.name}: the backup job cannot be started: {error}") from error

    async def end_backup(self, socket: str) -> None:
        """End the backup job whose NBD server listens on that socket and wait until it is gone; no such job is fine.

        Raises UnreachableError where that cannot be had.
        """
        if not await self.has_job_at(socket):
            return
        with trio.move_on_after(JOB_END_S):
            with contextlib.suppress(libvirt.libvirtError):  # it may end by itself at this moment; the loop below tells
                await _call("end the backup job", self._handle.abortJob)
            while await self.has_job_at(socket):
                await trio.sleep(POLL_S)
            return
        raise UnreachableError(
            f"{self.name}: the backup job has not ended within {JOB_END_S:g} s",
            names.command("virsh", "domjobabort", self.name),
        )

    async def freeze(self) -> None:
        """Freeze the guest's file systems through its agent.  Raises MissingError."""
        try:
            await _call("freeze the guest's file systems", self._handle.fsFreeze)
        except libvirt.libvirtError as error:
            raise MissingError(
                f"{self.name}: the guest's file systems cannot be frozen: {error}",
                "install and start qemu-guest-agent in the guest, or do without --quiesce",
            ) from error

    async def thaw(self) -> None:
        """Thaw the guest's file systems.  Raises UnreachableError."""
        remedy = names.command("virsh", "domfsthaw", self.name)
        try:
            await _call("thaw the guest's file systems", self._handle.fsThaw)
        except libvirt.libvirtError as error:
            raise UnreachableError(
                f"{self.name}: the guest's file systems cannot be thawed: {error}", remedy
            ) from error

    async def agent_answers(self) -> bool:
        """Whether the guest agent does."""
        try:
            await _call("ask the guest agent for its time", self._handle.getTime)
        except libvirt.libvirtError:
            return False
        return True

    async def remove(self) -> None:
        """Destroy it where it runs, and undefine it where it is defined.  Raises UnreachableError."""
        gone = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
        undefine = partial(self._handle.undefineFlags, _UNDEFINE)
        for what, function in (("destroy", self._handle.destroy), ("undefine", undefine)):
            try:
                await _call(f"{what} {self.name}", function)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in gone:
                    raise UnreachableError(
                        f"{self.name} cannot be removed ({what}): {error}", names.command("virsh", what, self.name)
                    ) from error

    def pid_file(self, uri: str) -> Path:
        """Where libvirt keeps the process id of its QEMU while it runs."""
        own = Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache") / "libvirt/qemu/run"
        directory = own if is_unprivileged(uri) else Path("/run/libvirt/qemu")
        return directory / f"{self.name}.pid"

    def qemu_pid(self, uri: str) -> int | None:
        """The process id of its QEMU, None where it cannot be told."""
        try:
            return int(self.pid_file(uri).read_text())
        except (OSError, ValueError):
            return None


def qemu_user(domain_xml: str) -> User:
    """Whom QEMU runs as.  Raises NotFoundError where the domain names a user that this host does not have."""
    owner = domainxml.owner(domain_xml)
    if owner is None:
        return User(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    try:
        uid = int(owner.user[1:]) if owner.user.startswith("+") else pwd.getpwnam(owner.user).pw_uid
        gid = int(owner.group[1:]) if owner.group.startswith("+") else grp.getgrnam(owner.group).gr_gid
    except (KeyError, ValueError) as error:
        raise NotFoundError(f"QEMU's user {owner.user}:{owner.group} is not known to this host") from error
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return User(uid, gid, tuple(groups))
