"""What is published over iSCSI, as values: portals, LUNs, targets, who may log in.

Names and limits are those of RFC 7143 (iSCSI), RFC 3722 (its names) and SPC-4 (INQUIRY data).
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UsageError
from .snapshot import Snapshot

PORT = 3260  # registered with IANA
LOOPBACK = "127.0.0.1"
FIRST_LUN = 1  # with tgtd LUN 0 is a controller without a disk; so that numbers do not depend on the software

# ".internal" belongs to everybody's private use (ICANN's resolution of July 2024), so no other authority names it.
AUTHORITY = "iqn.2024-08.internal.snapmount"
VENDOR = "SNAPMNT"  # 8 bytes at most (SPC-4, "Standard INQUIRY data")
PRODUCT_MAX = 16
NAME_MAX = 223  # bytes of an iSCSI name
SECRET_MIN, SECRET_MAX = 12, 16  # Microsoft's initiator takes 12 to 16 characters, and RFC 7143 asks for 96 bits

_IQN = re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9:.-]+)?")
_EUI_OR_NAA = re.compile(r"eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})")
_SERIALS = uuid.UUID("5d6f2f0e-6b0a-5c0e-9c8e-0d5a2d3c9b11")  # namespace of the serials, made once for snapmount


@dataclass(frozen=True)
class Portal:
    """An address and TCP port that a target listens at."""

    address: str  # IPv4 or IPv6, in its canonical form
    port: int = PORT

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    def __str__(self) -> str:
        """`192.0.2.7:3260` or `[2001:db8::7]:3260`."""
        return f"[{self.address}]:{self.port}" if self.is_ipv6 else f"{self.address}:{self.port}"


def parse_portal(text: str) -> Portal:
    """The portal that `ADDR[:PORT]` means; an IPv6 address stands in brackets where a port follows.

    Raises UsageError.  Addresses only: what a name resolves to may change while the target lives.
    """
    match = re.fullmatch(r"(?:\[(?P<bracketed>[^]]*)\]|(?P<plain>[^:]*)|(?P<bare>.*:.*:.*))(?::(?P<port>\d+))?", text)
    if match is None:
        raise UsageError(f"{text!r} is not a portal: ADDR, ADDR:PORT or [ADDR]:PORT")
    words = match.groupdict()
    try:
        address = ipaddress.ip_address(next(a for a in (words["bracketed"], words["plain"], words["bare"]) if a))
        port = int(words["port"] or PORT)
        if not 0 < port < 65536:
            raise ValueError
    except (ValueError, StopIteration):
        raise UsageError(f"{text!r} is not an IP address with a port from 1 to 65535 or none") from None
    return Portal(str(address), port)


@dataclass(frozen=True)
class Lun:
    """One disk of a snapshot as a logical unit, and how initiators recognise it."""

    number: int
    disk: str
    size_bytes: int
    serial: str  # 32 hexadecimal digits, the same for each publication of this disk of this snapshot
    product: str  # ASCII, 16 bytes at most: 'vm1-vda'
    vendor: str = VENDOR


@dataclass(frozen=True)
class Credentials:
    """Who may log in (CHAP, RFC 1994): `user` with `secret`.  With mutual CHAP the target proves itself too."""

    user: str
    secret: str = field(repr=False)
    mutual_user: str | None = None
    mutual_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Target:
    """An iSCSI target that shows one snapshot, without its secrets."""

    iqn: str
    portals: tuple[Portal, ...]
    luns: tuple[Lun, ...]
    initiators: tuple[str, ...]  # who is admitted, by name; empty: everyone who has the secret

    def document(self) -> dict[str, Any]:
        """As JSON: {"iqn", "portals": [{"address", "port"}], "luns": [{"number", "disk", "size_bytes", "serial",
        "product", "vendor"}], "initiators": [IQN]}.
        """
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Target:
        """The target that document() describes.  Raises KeyError, TypeError or ValueError for any other shape."""
        return cls(
            iqn=document["iqn"],
            portals=tuple(Portal(**portal) for portal in document["portals"]),
            luns=tuple(Lun(**lun) for lun in document["luns"]),
            initiators=tuple(document["initiators"]),
        )


@dataclass(frozen=True)
class Session:
    """An initiator that is logged in."""

    initiator: str  # its name
    address: str | None  # None where the target software does not tell
    bytes_read: int | None  # since it logged in; None where the target software does not count


def target_of(snapshot: Snapshot, portals: tuple[Portal, ...], initiators: tuple[str, ...]) -> Target:
    """The target of a snapshot: one LUN a disk, in the disks' order, numbered from 1 on."""
    luns = tuple(
        Lun(number, disk.name, disk.size_bytes, _serial(snapshot, disk.name), _product(snapshot.vm_name, disk.name))
        for number, disk in enumerate(snapshot.disks, FIRST_LUN)
    )
    return Target(_iqn(snapshot), portals, luns, initiators)


def _iqn(snapshot: Snapshot) -> str:
    """Lower case letters, digits, '-' and '.' only, so that no initiator or file name has trouble with it."""
    vm = re.sub(r"[^a-z0-9.-]+", "-", snapshot.vm_name.lower()).strip("-.")
    room = NAME_MAX - len(f"{AUTHORITY}:.{snapshot.id}")
    return f"{AUTHORITY}:{f'{vm[:room]}.' if vm else ''}{snapshot.id}"


def _serial(snapshot: Snapshot, disk: str) -> str:
    return uuid.uuid5(_SERIALS, f"{snapshot.vm_uuid}/{snapshot.id}/{disk}").hex


def _product(vm_name: str, disk: str) -> str:
    """A model that a person recognises: the VM's name is cut to the room there is, and so at last the disk's."""
    vm = re.sub(r"[^A-Za-z0-9._+-]", "_", vm_name)[: max(0, PRODUCT_MAX - 1 - len(disk))]
    return (f"{vm}-{disk}" if vm else disk)[:PRODUCT_MAX]


def check_initiator(name: str) -> str:
    """The initiator's name in the form that is compared.  Raises UsageError for none (RFC 7143, "iSCSI Names")."""
    lowered = name.lower()
    if len(lowered) > NAME_MAX or not (_IQN.fullmatch(lowered) or _EUI_OR_NAA.fullmatch(name)):
        raise UsageError(f"{name!r} is not the name of an iSCSI initiator, such as iqn.1993-08.org.debian:01:abc")
    return lowered if lowered.startswith("iqn.") else name


def check_secret(secret: str) -> str:
    """A CHAP secret that every initiator takes.  Raises UsageError, which does not tell the secret."""
    if not (SECRET_MIN <= len(secret) <= SECRET_MAX and re.fullmatch(r"[!-~]+", secret)):
        raise UsageError(f"a CHAP secret has {SECRET_MIN} to {SECRET_MAX} printable ASCII characters and no spaces")
    return secret
