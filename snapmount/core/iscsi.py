"""What is published over iSCSI, as values: portals, LUNs, targets, who may log in.

Names and limits are those of RFC 7143 (iSCSI), RFC 3722 (its names) and SPC-4 (INQUIRY data).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from .blocksize import DEFAULT_BLOCK_SIZE

PORT = 3260  # registered with IANA
PORTS = range(PORT, PORT + 100)  # those that are tried where none is asked for: a tgtd takes one for each snapshot
LOOPBACK = "127.0.0.1"
INITIATORS = (
    "linux",
    "qemu",
    "libvirt",
    "windows",
)  # whose commands are told, as `--for` names them; the usual one first
ALL_INITIATORS = "all"

# ".internal" belongs to everybody's private use (ICANN's resolution of July 2024), so no other authority names it.
AUTHORITY = "iqn.2024-08.internal.snapmount"
VENDOR = "SNAPMNT"  # 8 bytes at most (SPC-4, "Standard INQUIRY data")


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

    @property
    def is_any(self) -> bool:
        """Whether it stands for all addresses of the host, of its family."""
        return ipaddress.ip_address(self.address).is_unspecified

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from this host only."""
        return ipaddress.ip_address(self.address).is_loopback

    def overlaps(self, other: Portal) -> bool:
        """Whether two programs cannot listen at both of them."""
        is_same_address = self.is_any or other.is_any or self.address == other.address
        return self.port == other.port and self.is_ipv6 == other.is_ipv6 and is_same_address


@dataclass(frozen=True)
class PortalRequest:
    """Where a target is to listen."""

    address: str  # as in Portal
    port: int | None = None  # None: the first of PORTS that is free

    def at(self, port: int) -> Portal:
        """The portal with the port that is asked for, or else with this one."""
        return Portal(self.address, self.port or port)


@dataclass(frozen=True)
class Lun:
    """One disk of a snapshot as a logical unit, and how initiators recognise it."""

    number: int
    disk: str
    size_bytes: int
    serial: str  # 32 hexadecimal digits, the same for each publication of this disk of this snapshot
    product: str  # ASCII, 16 bytes at most: 'vm1-vda'
    vendor: str = VENDOR
    logical_block_size_bytes: int = DEFAULT_BLOCK_SIZE  # what READ CAPACITY tells; whole blocks only can be addressed


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


@dataclass(frozen=True)
class Session:
    """An initiator that is logged in."""

    initiator: str  # its name
    address: str | None  # None if the target software does not tell
    bytes_read: int | None  # since it logged in; None if the target software does not count
