"""Portals against what this host has: its addresses, and the ports that are in use and by whom."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from ...core.iscsi import Portal
from ...errors import UsageError

_LISTENING = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h


def check_addresses(portals: tuple[Portal, ...]) -> None:
    """Raises UsageError for a portal whose address this host does not have."""
    for portal in portals:
        try:
            _bind(portal, 0)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            raise UsageError(f"this host does not have the address {portal.address}", "ip -brief address") from None


def _bind(portal: Portal, port: int) -> None:
    """Bind the address for a moment, as a server does.  Raises OSError."""
    family = socket.AF_INET6 if portal.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not count
        if portal.is_ipv6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((portal.address, port))


def is_taken(portal: Portal) -> bool:
    """Whether something listens at the portal, or at its port on all addresses."""
    try:
        _bind(portal, portal.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return True
    return False


def users(port: int) -> list[str]:
    """The processes of this network namespace that listen at the port, such as 'tgtd (pid 4711)'.

    Read from /proc/net/tcp (proc_net_tcp in the kernel's documentation) and the descriptors in /proc; a listener of
    the kernel's own, such as LIO's, has no process.
    """
    sockets = {f"socket:[{inode}]" for inode in _listeners(port)}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            if any(os.readlink(fd) in sockets for fd in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text().strip()} (pid {process.name})")
    return sorted(found)


def _listeners(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen at the port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and re.fullmatch(f"[0-9A-F]+:{port:04X}", words[1]):
                    yield words[9]
