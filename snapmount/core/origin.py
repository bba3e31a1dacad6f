"""Where an image lies, as libvirt's `<source>` tells: a path, or a place in a network, which prints as a URI.

Formats: https://libvirt.org/formatdomain.html (hard drives); for the URIs QEMU's manual (docs/system/
device-url-syntax.rst.inc) and https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from xml.etree import ElementTree

_LIBVIRT_S = ("index", "startupPolicy")  # attributes that say nothing of where the image lies


@dataclass(frozen=True)
class Host:
    """A server of a network image: a name or an address, or a unix socket."""

    name: str = ""
    port: str = ""  # '' for the protocol's own
    socket: str = ""  # an absolute path; '' where there is a name

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}" if self.port else name


@dataclass(frozen=True)
class NetworkOrigin:
    """An image that QEMU reaches by a network protocol.

    As text it is a URI as QEMU takes it; several hosts, for which QEMU's has no room, are separated by commas.  What
    may be secret is not part of it: the query of an http URL, cookies.  Nor are the names of users.
    """

    protocol: str  # nbd, rbd, iscsi, gluster, http, https, ftp, ftps, tftp, ssh, nfs, ...
    name: str = ""  # export, pool/image, IQN/LUN, volume/path, path
    hosts: tuple[Host, ...] = ()
    transport: str = "tcp"  # or unix, rdma
    has_tls: bool = False
    snapshot: str = ""  # of an rbd image
    config: str = ""  # of a ceph cluster: an absolute path

    def __str__(self) -> str:
        if self.protocol == "rbd":
            return self._rbd()
        scheme = "nbds" if self.protocol == "nbd" and self.has_tls else self.protocol
        scheme += "" if self.transport == "tcp" else f"+{self.transport}"
        sockets = [host.socket for host in self.hosts if host.socket]
        authority = ",".join(str(host) for host in self.hosts if not host.socket)
        query = f"?socket={quote(sockets[0], safe='/')}" if sockets else ""
        return f"{scheme}://{authority}/{quote(self.name.removeprefix('/'), safe='/:@')}{query}"

    def _rbd(self) -> str:
        """rbd:POOL/IMAGE[@SNAPSHOT][:OPTION=VALUE...], where \\ precedes what would separate options."""
        text = f"rbd:{self.name}" + (f"@{self.snapshot}" if self.snapshot else "")
        if self.hosts:
            text += ":mon_host=" + ";".join(map(str, self.hosts)).replace(":", "\\:").replace(";", "\\;")
        return text + (f":conf={self.config}" if self.config else "")


Origin = str | NetworkOrigin  # the text of either names it to a person


def of_source(source: ElementTree.Element | None) -> Origin:
    """The origin that a `<source>` names; '' where there is none, as for an empty drive.

    A storage volume is POOL/VOLUME, a disk of another process the path of its socket, an NVMe disk a URI.
    """
    if source is None:
        return ""
    if "protocol" in source.attrib:
        return _network(source)
    address = source.find("address")
    if address is not None and "namespace" in source.attrib:
        return _nvme(address, source.attrib["namespace"])
    for attribute in ("file", "dev", "dir", "path"):
        if attribute in source.attrib:
            return source.attrib[attribute]
    if "volume" in source.attrib:
        return f"{source.get('pool', '')}/{source.attrib['volume']}"
    return "/".join(value for key, value in source.attrib.items() if key not in _LIBVIRT_S)  # of a libvirt to come


_OF_URI = frozenset({"nbd", "iscsi", "gluster", "nfs", "http", "https", "ftp", "ftps"})


def of_uri(text: str) -> NetworkOrigin | None:
    """The origin that a URI names, as it stands in an image's header; None for one with more in it than an origin has
    room for, such as a password.
    """
    try:
        uri = urlsplit(text)
        port = "" if uri.port is None else str(uri.port)
    except ValueError:
        return None
    protocol, _, transport = uri.scheme.partition("+")
    if protocol not in _OF_URI or uri.fragment or "@" in uri.netloc:
        return None
    name = unquote(uri.path).removeprefix("/") if protocol != "nfs" else unquote(uri.path)
    if transport == "unix" and protocol == "nbd" and uri.query.startswith("socket=") and "&" not in uri.query:
        return NetworkOrigin("nbd", name, (Host(socket=unquote(uri.query.removeprefix("socket="))),), "unix")
    if transport or uri.query or not uri.hostname:
        return None
    return NetworkOrigin(protocol, name, (Host(uri.hostname, port),))


def _network(source: ElementTree.Element) -> NetworkOrigin:
    elements = source.findall("host")
    hosts = tuple(Host(each.get("name", ""), each.get("port", ""), each.get("socket", "")) for each in elements)
    snapshot, config = source.find("snapshot"), source.find("config")
    return NetworkOrigin(
        protocol=source.attrib["protocol"],
        name=source.get("name", ""),
        hosts=hosts,
        transport=elements[0].get("transport", "tcp") if elements else "tcp",
        has_tls=source.get("tls") == "yes",
        snapshot="" if snapshot is None else snapshot.get("name", ""),
        config="" if config is None else config.get("file", ""),
    )


def _nvme(address: ElementTree.Element, namespace: str) -> str:
    """nvme://DOMAIN:BUS:SLOT.FUNCTION/NAMESPACE"""
    digits = {"domain": 4, "bus": 2, "slot": 2, "function": 1}
    domain, bus, slot, function = (
        address.get(key, "0").removeprefix("0x").zfill(width) for key, width in digits.items()
    )
    return f"nvme://{domain}:{bus}:{slot}.{function}/{namespace}"
