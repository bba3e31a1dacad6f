"""Connections to libvirt, and what is found through one."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import libvirt

from ..core import domainxml, names
from ..core.diskdefinition import DiskDefinition
from ..core.user import User
from ..errors import NotFoundError, StateError, UnreachableError
from ..host import programs
from .calls import call, change, close, explained, refusal
from .daemon import to_reach
from .domain import Domain
from .identity import user_of

CONNECT_S = 15.0
# What libvirt says of its socket: the code of its error, and of the system's.
_NOBODY_LISTENS = [(libvirt.VIR_ERR_SYSTEM_ERROR, number) for number in (errno.ENOENT, errno.ECONNREFUSED)]
START_S = 300.0  # a VM, on a busy host, where libvirt probes QEMU first for each of several


@contextlib.asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Hypervisor]:
    """A connection to libvirt.  Raises UnreachableError."""
    try:
        connection = await call(f"connect to {uri}", libvirt.open, uri, deadline_s=CONNECT_S)
    except libvirt.libvirtError as error:
        raise UnreachableError(f"libvirt cannot be reached at {uri}: {error}", _remedy(uri, error)) from error
    try:
        yield Hypervisor(connection, uri)
    finally:
        await close(connection)


def _remedy(uri: str, error: libvirt.libvirtError) -> str:
    """Start the daemon, where nothing listens at its usual socket; else virsh(1) may tell more."""
    listens = (error.get_error_code(), error.get_int1()) not in _NOBODY_LISTENS
    if listens or urlsplit(uri).query:
        return names.command("virsh", "-c", uri, "list")
    return to_reach(uri, programs.remedies(), programs.has)


@dataclass(frozen=True)
class QemuFacts:
    """What libvirt tells of QEMU on this host."""

    version: str
    supports_backup: bool
    security_models: tuple[str, ...]  # of libvirt's drivers: dac, apparmor, selinux
    user: User  # that QEMU runs as by default


class Hypervisor:
    """A connection to libvirt."""

    def __init__(self, connection: Any, uri: str) -> None:
        self._connection = connection
        self._uri = uri

    async def version(self) -> str:
        """The version of the libvirt daemon.  Raises UnreachableError."""
        with explained("ask libvirt for its version"):
            return _version(await call("ask libvirt for its version", self._connection.getLibVersion))

    async def qemu(self) -> QemuFacts:
        """Raises UnreachableError, if there is no QEMU for instance."""
        with explained("ask libvirt for QEMU"):
            version = await call("ask for QEMU's version", self._connection.getVersion)
            of_host = await call("ask for the host's capabilities", self._connection.getCapabilities)
            of_domains = await call("ask for the domain capabilities", self._connection.getDomainCapabilities)
        models = domainxml.security_models(of_host)
        return QemuFacts(
            version=_version(version),
            supports_backup=domainxml.supports_backup(of_domains),
            security_models=tuple(models),
            user=user_of(models.get("dac")),
        )

    async def domain(self, name: str) -> Domain:
        """The VM of that name or uuid.  Raises NotFoundError, with near names in its message."""
        for look_up in (self._connection.lookupByName, self._connection.lookupByUUIDString):
            try:
                return Domain(await call(f"look up {name}", look_up, name))
            except UnicodeEncodeError:
                break  # libvirt's names are UTF-8: there is none such
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise UnreachableError(f"{name}: {error}") from error
        with explained("list the VMs"):
            known = [each.name() for each in await call("list the VMs", self._connection.listAllDomains)]
        near = names.near(name, known)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise NotFoundError(
            f"there is no VM {name!r} at {self._uri}{hint}", names.command("virsh", "-c", self._uri, "list", "--all")
        )

    async def domain_by_uuid(self, uuid: str) -> Domain | None:
        """The VM of that uuid, None if libvirt knows it no more."""
        try:
            return Domain(await call(f"look up {uuid}", self._connection.lookupByUUIDString, uuid))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise UnreachableError(f"{uuid}: {error}") from error

    async def scratch_vm(self, uuid: str, snapshot_id: str) -> Domain | None:
        """The scratch VM of that uuid on that snapshot; None if libvirt knows none, and for any other VM, which is
        not snapmount's to end.  Raises UnreachableError.
        """
        domain = await self.domain_by_uuid(uuid)
        return domain if domain and await domain.scratch_vm_of() == snapshot_id else None

    async def volume_path(self, pool: str, volume: str) -> str:
        """The file or block device that a storage volume is.  Raises StateError if there is none, or its pool is not
        active.
        """
        try:
            found = await call(f"look up the pool {pool}", self._connection.storagePoolLookupByName, pool)
            path: str = (await call(f"look up the volume {volume}", found.storageVolLookupByName, volume)).path()
        except libvirt.libvirtError as error:
            raise StateError(
                f"the volume {volume} of the pool {pool} cannot be found: {error}",
                names.command("virsh", "-c", self._uri, "pool-start", pool),
            ) from error
        return path

    async def block_disks(self) -> dict[str, str]:
        """The paths of all VMs' disks that are block devices, with what each is: 'the disk vda of vm1'."""
        return {
            str(disk.origin): f"the disk {disk.name} of {domain.name}"
            async for domain, disk in self._disks()
            if disk.kind == "block"
        }

    async def written_by_others(self, vm_uuid: str, disks: Sequence[DiskDefinition]) -> dict[str, str]:
        """Which of a VM's disks other VMs that run can write to, for each the disk of another: 'the disk vda of vm1'.

        Images are the same where libvirt names them the same.
        """
        mine = {disk.origin: disk.name for disk in disks}
        return {
            mine[disk.origin]: f"the disk {disk.name} of {domain.name}"
            async for domain, disk in self._disks(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            if domain.uuid != vm_uuid and disk.origin in mine and not disk.is_readonly
        }

    async def _disks(self, flags: int = 0) -> AsyncIterator[tuple[Domain, DiskDefinition]]:
        """All disks of all VMs.  Raises UnreachableError."""
        with explained("list the VMs"):
            handles = await call("list the VMs", self._connection.listAllDomains, flags)
        for domain in map(Domain, handles):
            try:
                xml = await domain.xml()
            except UnreachableError:
                if await self.domain_by_uuid(domain.uuid) is None:
                    continue  # it has gone meanwhile
                raise
            for disk in domainxml.disks(xml):
                yield domain, disk

    async def check_name_is_free(self, name: str) -> None:
        """Raise StateError if a VM has the name."""
        with explained("list the VMs"):
            known = [each.name() for each in await call("list the VMs", self._connection.listAllDomains)]
        if name in known:
            raise StateError(f"there is a VM {name!r} at {self._uri} already", "another --name")

    async def check_network(self, name: str) -> None:
        """Raise NotFoundError if there is no such network, StateError if it is not active."""
        with explained("list the networks"):
            networks = await call("list the networks", self._connection.listAllNetworks)
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

        Raises StateError if libvirt or QEMU refuses; a persistent one may be defined then.
        """
        try:
            if not persistent:
                create = self._connection.createXML
                return Domain(await change("start the VM", create, domain_xml, 0, deadline_s=START_S))
            handle = await change("define the VM", self._connection.defineXML, domain_xml)
            await change("start the VM", handle.create, deadline_s=START_S)
            return Domain(handle)
        except libvirt.libvirtError as error:
            raise refusal("the VM cannot be started", error) from error


def _version(number: int) -> str:
    """As libvirt tells versions: a million for each major, a thousand for each minor release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
