"""The checks of libvirt and QEMU, and of what QEMU's user may do."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import trio

from ..core import names, uris
from ..core.user import User
from ..errors import MissingError, SnapmountError, UnreachableError
from ..host import blocking, datadirectory, kvm, mounts, usage
from . import health
from .health import Finding, Place, SELinux
from .subject import Subject

try:
    from .. import hypervisor
    from ..hypervisor import directories
    from ..hypervisor.kvm import is_open_to
    from ..sources.pull.scratch.places import FileSystem, is_rotational
except MissingError:  # libvirt's module, whose own check tells
    hypervisor = None  # type: ignore[assignment]

LIBVIRT_S = 10.0
PROBE_S = 30.0  # after that; a daemon that has just started runs each of its QEMUs first, to see what it can do
PLACE_S = 10.0
DEADLINE_S = LIBVIRT_S + PROBE_S + 2 * PLACE_S  # the default place and the user's
VIRTLOGD = "/run/libvirt/virtlogd-sock"
SELINUXFS = Path("/sys/fs/selinux")


def uri(subject: Subject) -> str | None:
    """The connection that is looked at; None if libvirt's module is missing.  Raises UsageError."""
    if hypervisor is None:
        return None
    connect = subject.connect or hypervisor.default_uri()
    uris.check(connect)
    return connect


async def check(subject: Subject) -> list[Finding]:
    """libvirt, and all that only libvirt can tell."""
    connect = uri(subject)
    if hypervisor is None or connect is None:
        return _without_libvirt(health.skipped("libvirt", "its Python module is missing"))
    if not (subject.remedies.is_root or uris.is_unprivileged(connect)):
        text = f"only root can take snapshots of VMs at {connect}: scratch files must belong to QEMU's user"
        remedy = f"sudo {names.command('snapmount', 'doctor', '--connect', connect)}"
        return _without_libvirt(health.problem("libvirt", text, remedy))
    findings: list[Finding] = []
    try:
        with trio.fail_after(LIBVIRT_S) as answering:
            async with hypervisor.connected(connect) as connection:
                findings.append(health.ok("libvirt", f"{await connection.version()} at {connect}"))
                answering.deadline += PROBE_S
                try:
                    qemu = await connection.qemu()
                except UnreachableError as error:
                    findings.append(health.problem("QEMU", error.message, subject.remedies.install("QEMU", "libvirt")))
                    return findings
    except trio.TooSlowError:
        if findings:
            text = f"libvirt answers, but has not told within {PROBE_S:g} s what QEMU can do"
            findings.append(health.problem("QEMU", text, names.command("virsh", "-c", connect, "capabilities")))
            return findings + _skipped("scratch", "confinement")
        text = f"no answer within {LIBVIRT_S:g} s at {connect}"
        return _without_libvirt(health.problem("libvirt", text, _restart(subject, connect)))
    except UnreachableError as error:
        return _without_libvirt(health.problem("libvirt", error.message, _reach(subject, connect)))
    findings.append(health.qemu(qemu.version, qemu.supports_backup, subject.remedies))
    if not uris.is_unprivileged(connect):
        findings.append(_console_log(subject))
        if kvm.is_there() and not await is_open_to(qemu.user, kvm.DEVICE):
            findings.append(health.kvm_of_qemu(qemu.user.uid, subject.remedies))
    parents = [datadirectory.path(), *([Path(subject.scratch_dir)] if subject.scratch_dir else [])]
    findings += [await _place(subject, parent, qemu.user) for parent in dict.fromkeys(parents)]
    findings.append(health.confinement(qemu.security_models, _selinux(), subject.remedies))
    return findings


def _without_libvirt(finding: Finding) -> list[Finding]:
    return [finding, *_skipped("QEMU", "scratch", "confinement")]


def _skipped(*checks: str) -> list[Finding]:
    return [health.skipped(check, "libvirt must tell first") for check in checks]


# -- libvirt -----------------------------------------------------------------------------------------------------------


def _restart(subject: Subject, connect: str) -> str:
    daemon = hypervisor.daemon(subject.remedies, subject.has)
    if daemon and subject.remedies.has_systemd and not uris.is_unprivileged(connect):
        return subject.remedies.as_root("systemctl", "restart", daemon[1])
    kill = names.command("pkill", "-KILL", "-u", str(os.geteuid()), "-x", daemon[1] if daemon else "libvirtd")
    return f"{kill}; {_reach(subject, connect)}"


def _reach(subject: Subject, connect: str) -> str:
    """The command after which libvirt can be reached."""
    return hypervisor.to_reach(connect, subject.remedies, subject.has)


def _console_log(subject: Subject) -> Finding:
    """virtlogd(8), which keeps what scratch VMs write to their consoles, and what QEMU says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(VIRTLOGD)
        except PermissionError:
            return health.ok("virtlogd", f"{VIRTLOGD} is there")
        except OSError as error:
            text = f"{VIRTLOGD}: {error.strerror}: VMs, and so scratch VMs (boot), cannot be started"
            if subject.has("virtlogd"):
                return health.warning("virtlogd", text, subject.remedies.start("virtlogd.socket", "virtlogd"))
            return health.warning("virtlogd", text, subject.remedies.install("virtlogd"))
    return health.ok("virtlogd", "answers")


# -- what QEMU's user may do -------------------------------------------------------------------------------------------


async def _place(subject: Subject, parent: Path, user: User) -> Finding:
    """A place for scratch files, and as the default one also for the view of `boot`: tried as `take` does it."""
    other = "snapmount VM MOUNTPOINT --scratch-dir DIRECTORY   (one on a disk, with space, that QEMU's user can reach)"
    probe = parent / f"snapmount-doctor-{secrets.token_hex(4)}"
    try:
        with trio.fail_after(PLACE_S):
            place = await blocking.call(PLACE_S, _look_at, parent)
            finding = health.scratch(place, other, has_others=subject.remedies.is_root)
            if finding.status is health.Status.PROBLEM:
                return finding
            try:
                await directories.create(probe, user, None)
            finally:
                with trio.CancelScope(shield=True):
                    await blocking.call(PLACE_S, directories.remove, probe)
    except trio.TooSlowError:
        return health.problem("scratch", f"{parent}: its file system did not answer within {PLACE_S:g} s", other)
    except SnapmountError as error:
        locked = await blocking.call(PLACE_S, _locked_directory, parent, user)
        remedy = subject.remedies.as_root("chmod", "a+x", str(locked)) if locked else error.remedy or other
        return health.problem("scratch", error.message, remedy)
    return finding


def _look_at(parent: Path) -> Place:
    """Raises SpaceError, OSError."""
    free = usage.free_bytes(parent)
    real = next(each for each in (parent.resolve(), *parent.resolve().parents) if each.exists())
    mount = mounts.holding(str(real), mounts.current())
    file_system = FileSystem(mount.fstype if mount else "unknown", mount.source if mount else "", real.stat().st_dev)
    is_default, rotates = parent == datadirectory.path(), is_rotational(file_system) is True
    return Place(str(parent), file_system.fstype, free, rotates, is_default)


def _locked_directory(parent: Path, user: User) -> Path | None:
    """The uppermost directory on the way that the user may not pass, None for none."""
    if user.uid == 0:
        return None
    for directory in reversed((parent, *parent.parents)):
        try:
            status = directory.stat()
        except OSError:
            return None
        mine = status.st_uid == user.uid
        ours = status.st_gid in (user.gid, *user.groups)
        if not status.st_mode & (0o100 if mine else 0o010 if ours else 0o001):
            return directory
    return None


def _selinux() -> SELinux | None:
    """None if the kernel has none."""

    def reads(name: str) -> str:
        try:
            return (SELINUXFS / name).read_text()
        except OSError:
            return "0"

    if not (SELINUXFS / "enforce").exists():
        return None
    return SELinux(reads("enforce").startswith("1"), reads("booleans/virt_use_fusefs").startswith("1"))
