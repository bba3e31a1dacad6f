"""Portals against what this host has: its addresses, and the ports that are in use and by whom."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ...core.iscsi import PORTS, Portal, PortalRequest
from ...core.publishing import without_port
from ...errors import StateError, UsageError
from . import PortalInUseError

_LISTENING = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h


def free_ports(
    requests: Iterable[PortalRequest], is_shared: Callable[[Portal], bool], check: Callable[[Portal], None]
) -> list[int]:
    """Those of PORTS that are free at all addresses for which no port is asked for.

    `is_shared` tells where one more target can listen though others do; `check` raises PortalInUseError for a portal
    where it cannot, and this does so for the ports that are asked for.  Raises UsageError for an address that cannot be
    listened at.
    """
    asked = list(requests)
    check_addresses(request.at(PORTS.start) for request in asked)
    for request in asked:
        if request.port is not None:
            check(request.at(request.port))
    portless = [request for request in asked if request.port is None]

    def is_free(port: int) -> bool:
        return all(is_shared(request.at(port)) or _is_free(request.at(port)) for request in portless)

    return [port for port in PORTS if is_free(port)] if portless else []


def _is_free(portal: Portal) -> bool:
    try:
        _bind(portal, portal.port)
    except OSError:
        return False
    return True


def check_addresses(portals: Iterable[Portal]) -> None:
    """Raises UsageError for a portal whose address this host does not have, or cannot listen at."""
    for portal in portals:
        try:
            _bind(portal, 0)
            is_of_many = _is_broadcast(portal)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                text = f"this host does not have the address {portal.address}"
            else:
                text = f"cannot listen at {portal.address}: {error.strerror}"
            raise UsageError(text, "ip -brief address") from None
        if is_of_many:
            raise UsageError(f"{portal.address} is a broadcast address", "ip -brief address")


def _is_broadcast(portal: Portal) -> bool:
    """Whether the address is that of a whole network of this host's, which can be bound, and reached by nobody."""
    if portal.is_ipv6:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((portal.address, portal.port))  # sends nothing
        except PermissionError:  # without SO_BROADCAST (ip(7))
            return True
    return False


def _bind(portal: Portal, port: int) -> None:
    """Bind the address for a moment, as a server does.  Raises OSError."""
    family = socket.AF_INET6 if portal.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not count
        if portal.is_ipv6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((portal.address, port))


def check_free(portal: Portal, in_kernel: Iterable[str] = ()) -> None:
    """Raises PortalInUseError if something listens at the portal; it names who does, as far as that can be told.
    StateError where nobody could.

    `in_kernel` are the targets of the kernel's own that may be the ones: they belong to no process.
    """
    try:
        _bind(portal, portal.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise StateError(f"cannot listen at {portal}: {error.strerror}") from None
        by = ", ".join([*in_kernel, *_users(portal)]) or "the kernel or another user's process"
        raise PortalInUseError(f"{portal} is in use by {by}", without_port(portal.address)) from None


def refusal(portal: Portal) -> StateError:
    """Why a server could not listen at the portal."""
    try:
        check_free(portal)
    except StateError as error:
        return error
    return StateError(f"the target software cannot listen at {portal}, though nothing else does")


def _users(portal: Portal) -> list[str]:
    """The processes that listen at the portal, such as 'tgtd (pid 4711)'.

    A listener of the kernel's own, such as LIO's, belongs to no process; those of others can be told by root only.
    """
    sockets = {f"socket:[{inode}]" for inode in _listeners(portal)}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            if any(os.readlink(descriptor) in sockets for descriptor in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text().strip()} (pid {process.name})")
    return found


def _listeners(portal: Portal) -> Iterator[str]:
    """The inodes of the sockets that listen at the portal, or at its port on all addresses (proc_pid_net(5))."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _number, local, _remote, state, *_rest = words = line.split()
                address, port = local.split(":")
                is_same = int(address, 16) == 0 or portal.is_any or address == _hexadecimal(portal)
                if state == _LISTENING and int(port, 16) == portal.port and is_same:
                    yield words[9]


def _hexadecimal(portal: Portal) -> str:
    """The address as the kernel's tables have it: words of 32 bits in the host's byte order."""
    packed = ipaddress.ip_address(portal.address).packed
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))
