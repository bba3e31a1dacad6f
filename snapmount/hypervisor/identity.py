"""What QEMU's processes tell: which version they are, and whom they run as."""

from __future__ import annotations

import grp
import os
import pwd
import re
from pathlib import Path

import trio

from ..core import domainxml
from ..core.user import User
from ..errors import NotFoundError, StateError
from ..host import blocking, qemu
from .uri import SYSTEM_PIDS

LIBVIRT = Path("/var/lib/libvirt/qemu")  # qemuStateInitialize() in libvirt's qemu_driver.c
VERSION_S = 10.0


async def version_of(pid: int) -> tuple[int, ...] | None:
    """The version of the QEMU that is this process; None if it cannot be told."""
    try:
        done = await blocking.run(VERSION_S, [f"/proc/{pid}/exe", "--version"])  # also where it was replaced
    except (OSError, trio.TooSlowError):
        return None
    return _version(done.stdout)


def _version(said: bytes) -> tuple[int, ...] | None:
    """The version in what `qemu-system-... --version` prints."""
    found = re.search(rb"version (\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else None


def qemu_user(domain_xml: str) -> User:
    """Whom QEMU runs as.  Raises NotFoundError if the domain names a user that this host does not have.

    A VM of the system without a DAC label (`<seclabel type='none'>`) runs as whom libvirt's configuration says, which
    its process tells.  So does one that is shut off: libvirt gives its directory to that user when it starts.  Raises
    StateError where that of a VM that runs cannot be found.
    """
    owner = domainxml.owner(domain_xml)
    if owner is None and os.geteuid() == 0:
        domain = domainxml.parse(domain_xml, "the domain's definition")
        user = _user_of_vm(domain.findtext("uuid", ""))
        if user is None and domain.get("id"):
            raise StateError(
                f"{domain.findtext('name')}: whom its QEMU runs as cannot be told: it has no DAC label, and no file in "
                f"{SYSTEM_PIDS} names its process"
            )
        return user or _owner_of(LIBVIRT)
    return user_of(owner)


def _owner_of(directory: Path) -> User:
    """Whose it is; ourselves where there is none."""
    try:
        status = directory.stat()
        account = pwd.getpwuid(status.st_uid)
    except (OSError, KeyError):
        return user_of(None)
    return User(status.st_uid, account.pw_gid, tuple(os.getgrouplist(account.pw_name, account.pw_gid)))


def _user_of_vm(uuid: str) -> User | None:
    """Whom its QEMU runs as; None if it does not run, or cannot be found."""
    found = qemu.find(uuid, SYSTEM_PIDS)
    try:
        status = Path(f"/proc/{found.pid}/status").read_text() if found else None
    except OSError:
        return None
    if status is None:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid, gid = (int(fields[key].split()[1]) for key in ("Uid", "Gid"))  # the effective one
    return User(uid, gid, tuple(map(int, fields["Groups"].split())))


def user_of(owner: domainxml.Owner | None) -> User:
    """That user, by default ourselves.  Raises NotFoundError if this host does not have it."""
    if owner is None:
        return User(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    try:
        uid = int(owner.user[1:]) if owner.user.startswith("+") else pwd.getpwnam(owner.user).pw_uid
        gid = int(owner.group[1:]) if owner.group.startswith("+") else grp.getgrnam(owner.group).gr_gid
    except (KeyError, ValueError) as error:
        raise NotFoundError(f"QEMU's user {owner.user}:{owner.group} is not known to this host") from error
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return User(uid, gid, tuple(groups))
