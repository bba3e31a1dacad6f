"""What is to be published over iSCSI: the portals, initiators and secrets asked for, and the target of a snapshot.

Names and limits are those of RFC 7143 (iSCSI), RFC 3722 (its names) and SPC-4 (INQUIRY data).
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import uuid
from collections.abc import Collection, Iterable

from ..errors import StateError, UsageError
from .iscsi import AUTHORITY, LOOPBACK, PORT, PORTS, Lun, Portal, PortalRequest, Target
from .names import command
from .snapshot import Snapshot

FIRST_LUN = 1  # with tgtd LUN 0 is a controller without a disk; so that numbers do not depend on the software
PRODUCT_MAX = 16
NAME_MAX = 223  # bytes of an iSCSI name
SECRET_MIN, SECRET_MAX = 12, 16  # Microsoft's initiator takes 12 to 16 characters, and RFC 7143 asks for 96 bits


_IQN = re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9:.-]+)?")
_PORTAL = re.compile(r"(?:\[(?P<bracketed>[^]]*)\]|(?P<plain>[^:]*)|(?P<bare>.*:.*:.*))(?::(?P<port>[0-9]+))?")
_EUI_OR_NAA = re.compile(r"eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})")
_SERIALS = uuid.UUID("5d6f2f0e-6b0a-5c0e-9c8e-0d5a2d3c9b11")  # namespace of the serials, made once for snapmount


def parse_portal(text: str) -> PortalRequest:
    """The portal that `ADDR[:PORT]` means; an IPv6 address stands in brackets where a port follows.

    Raises UsageError.  Addresses only: what a name resolves to may change while the target lives.
    """
    match = _PORTAL.fullmatch(text)
    words = match.groupdict() if match else {}
    address = words.get("bracketed") or words.get("plain") or words.get("bare")
    if not address:
        raise UsageError(f"--portal {text!r} is not of the form ADDR, ADDR:PORT or [ADDR]:PORT", "ip -brief address")
    canonical, port = _address(address), words["port"]
    if port and not (len(port) <= 5 and 0 < int(port) < 65536):
        raise UsageError(f"--portal {text}: a port is a number from 1 to 65535", without_port(canonical))
    return PortalRequest(canonical, int(port) if port else None)


def _address(text: str) -> str:
    """The address in its canonical form.  Raises UsageError for one that is not of a host, or not of one alone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(f"--portal: {text!r} is not an IP address", "ip -brief address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        if address.is_link_local or address.scope_id:
            why = "is an address of one link only, and means nothing to initiators elsewhere"
            raise UsageError(f"--portal: {text} {why}", "ip -brief address")
    if address.is_multicast:
        raise UsageError(f"--portal: {text} is a multicast address", "ip -brief address")
    return str(address)


def without_port(address: str) -> str:
    """The remedy for a port that cannot be had."""
    portal = command("snapmount", "--iscsi", "--portal", address, "VM")
    return f"{portal}   (without a port: the first from {PORT} on that is free)"


def parse_portals(texts: Iterable[str]) -> tuple[PortalRequest, ...]:
    """The portals that are asked for; none: the loopback address.

    Raises UsageError, also for two of which one would keep the other from listening.
    """
    requests = tuple(dict.fromkeys(map(parse_portal, texts))) or (PortalRequest(LOOPBACK),)
    for one, other in itertools.combinations(requests, 2):
        if one.port == other.port and one.at(PORT).overlaps(other.at(PORT)):
            every, single = (one, other) if one.at(PORT).is_any else (other, one)
            text = f"--portal {every.address} stands for all addresses, also for {single.address}"
            raise UsageError(text, "one of the two")
    return requests


def choose_portals(
    requests: Iterable[PortalRequest], free: Iterable[int], reserved: Collection[Portal]
) -> tuple[Portal, ...]:
    """The portals to listen at: those without a port share the first of the free ones that nobody has reserved.

    Raises StateError if there is none.
    """
    asked = tuple(requests)
    portless = [request for request in asked if request.port is None]
    for port in free if portless else (PORT,):
        chosen = tuple(dict.fromkeys(request.at(port) for request in asked))
        ours = [request.at(port) for request in portless]
        others = [*reserved, *(portal for portal in chosen if portal not in ours)]
        if not any(one.overlaps(other) for one in ours for other in others):
            return chosen
    where = ", ".join(request.address for request in portless)
    remedy = command("snapmount", "--iscsi", "--portal", str(portless[0].at(PORTS.stop)), "VM")
    raise StateError(f"the ports {PORTS.start} to {PORTS.stop - 1} of {where} are all in use", remedy)


def target_of(snapshot: Snapshot, portals: tuple[Portal, ...], initiators: tuple[str, ...]) -> Target:
    """The target of a snapshot: one LUN a disk, in the disks' order, numbered from 1 on."""
    luns = tuple(
        Lun(
            number=number,
            disk=disk.name,
            size_bytes=disk.size_bytes,
            serial=_serial(snapshot, disk.name),
            product=_product(snapshot.vm_name, disk.name),
            logical_block_size_bytes=disk.logical_block_size_bytes,
        )
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
        text = f"{name!r} is not the name of an iSCSI initiator, such as iqn.1993-08.org.debian:01:abc"
        raise UsageError(text, "cat /etc/iscsi/initiatorname.iscsi   (on the initiator)")
    return lowered if lowered.startswith("iqn.") else name


def check_secret(secret: str) -> str:
    """A CHAP secret that every initiator takes.  Raises UsageError, which does not tell the secret."""
    if not (SECRET_MIN <= len(secret) <= SECRET_MAX and re.fullmatch(r"[!-~]+", secret)):
        text = f"a CHAP secret has {SECRET_MIN} to {SECRET_MAX} printable ASCII characters and no spaces"
        raise UsageError(text, "head -c 12 /dev/urandom | base64 >FILE   (16 characters)")
    return secret
