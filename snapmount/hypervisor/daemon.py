"""libvirt's daemon on this host, and how it is started."""

from __future__ import annotations

from collections.abc import Callable

from ..core import names
from ..core.remedies import Remedies
from ..core.uris import is_unprivileged


def daemon(remedies: Remedies, has: Callable[[str], bool]) -> tuple[str, str] | None:
    """The unit and the program of the daemon that serves qemu:///system; None if none is installed, as `has` tells
    of a program.
    """
    candidates = ("virtqemud", "libvirtd") if remedies.prefers_modular_libvirt() else ("libvirtd", "virtqemud")
    program = next(filter(has, candidates), None)
    return (f"{program}.socket" if program == "virtqemud" else program, program) if program else None


def to_reach(uri: str, remedies: Remedies, has: Callable[[str], bool]) -> str:
    """The command after which libvirt, which does not run, can be reached."""
    found = daemon(remedies, has)
    if found is None:
        return remedies.install("libvirt")
    if is_unprivileged(uri):
        return names.command("virsh", "-c", uri, "list")  # starts the user's daemon, and tells why it does not
    return remedies.start(*found)
