"""The commands that mend a host, as its distribution and its service manager have them: to be pasted as they are."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from . import names

# What is called differently on Debian and Ubuntu, and on Fedora and its kin; all else has one name, or is a package's.
_ON_DEBIAN: dict[str, str] = {
    "a compiler": "gcc libc6-dev pkg-config libfuse3-dev python3-dev",
    "libvirt": "libvirt-daemon-system libvirt-daemon-driver-qemu",
    "QEMU": "qemu-system",
    "qemu-img": "qemu-utils",
    "mount": "mount",
    "umount": "mount",
    "virsh": "libvirt-clients",
    "virtlogd": "libvirt-daemon-system",
    "python3-rtslib": "python3-rtslib-fb",
}
_ON_FEDORA: dict[str, str] = {
    "a compiler": "gcc pkgconf-pkg-config fuse3-devel python3-devel",
    "libvirt": "libvirt-daemon-kvm",
    "QEMU": "qemu-kvm",
    "virsh": "libvirt-client",
    "dmsetup": "device-mapper",
    "virtlogd": "libvirt-daemon-log",
    "tgt": "scsi-target-utils",
    "mount": "util-linux",
    "umount": "util-linux",
}
_ANYWHERE: dict[str, str] = {
    "dd": "coreutils",
    "test": "coreutils",
    "findmnt": "util-linux",
    "fallocate": "util-linux",
    "wipefs": "util-linux",
}


@dataclass(frozen=True)
class Remedies:
    """For whom the commands are."""

    distribution: frozenset[str]  # ID and ID_LIKE of os-release(5)
    is_root: bool
    has_systemd: bool

    def as_root(self, *words: str) -> str:
        """A command that root must run."""
        return names.command(*words) if self.is_root else f"sudo {names.command(*words)}"

    def install(self, *what: str) -> str:
        """The command that installs these; names are Debian's and Fedora's, or keys of the tables above."""
        if "debian" in self.distribution:
            return self.as_root("apt-get", "install", *_packages(what, _ON_DEBIAN))
        if self.distribution & {"fedora", "rhel"}:
            return self.as_root("dnf", "install", *_packages(what, _ON_FEDORA))
        return f"install {', '.join(what)} as your distribution has it"

    def start(self, unit: str, daemon: str) -> str:
        """The command that starts a daemon: a unit of systemd, or else the program, which goes to the background."""
        return self.as_root("systemctl", "start", unit) if self.has_systemd else self.as_root(daemon, "-d")

    def prefers_modular_libvirt(self) -> bool:
        """Whether virtqemud(8), and not libvirtd(8), is what the distribution starts."""
        return "debian" not in self.distribution


def _packages(what: tuple[str, ...], table: dict[str, str]) -> list[str]:
    found = [package for each in what for package in (table | _ANYWHERE).get(each, each).split()]
    return list(dict.fromkeys(found))


def distribution(os_release: str) -> frozenset[str]:
    """The distribution and those that it is like, from the text of os-release(5), whose values are quoted as in a
    shell.
    """
    found: set[str] = set()
    for line in os_release.splitlines():
        key, _, value = line.strip().partition("=")
        if key in ("ID", "ID_LIKE"):
            try:
                found.update(" ".join(shlex.split(value)).lower().split())
            except ValueError:  # a quote that is not closed
                continue
    return frozenset(found)
