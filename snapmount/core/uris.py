"""Connection URIs: https://libvirt.org/uri.html"""

from __future__ import annotations

from urllib.parse import urlsplit

from ..errors import UsageError
from . import names


def check(uri: str) -> None:
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
