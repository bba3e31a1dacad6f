"""What `snapmount doctor` finds: how facts of a host are judged, and how the findings are told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..core import names, units
from ..core.document import to_document
from ..core.limits import FLOOR_BYTES
from ..core.remedies import Remedies
from ..host.fuseconf import permits_allow_other
from ..sources.pull.scratch.place import MEMORY, why_not

OLDEST_KERNEL = (5, 3)  # pidfd_open(2)
LITTLE_BYTES = units.GIB  # of free scratch space: enough for small VMs only
MISSING = "missing"


class Status(Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"  # something that not everybody needs is missing
    PROBLEM = "problem"  # snapshots cannot be taken, or not without harm
    SKIPPED = "skipped"  # it could not be looked at, because of something else


@dataclass(frozen=True)
class Finding:
    """What a check has found; made by the functions below, so that whatever is not well comes with what mends it."""

    check: str
    status: Status
    text: str
    remedy: str | None = None


def ok(check: str, text: str) -> Finding:
    return Finding(check, Status.OK, text)


def warning(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, Status.WARNING, text, remedy)


def problem(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, Status.PROBLEM, text, remedy)


def skipped(check: str, text: str) -> Finding:
    return Finding(check, Status.SKIPPED, text)


# -- the whole ---------------------------------------------------------------------------------------------------------


def verdict(findings: Collection[Finding]) -> Status:
    """The worst of them; what was skipped was skipped because of another one."""
    found = {finding.status for finding in findings}
    return next((status for status in (Status.PROBLEM, Status.WARNING) if status in found), Status.OK)


def document(findings: Sequence[Finding], connect: str | None) -> dict[str, Any]:
    """The JSON shape of `doctor`; see JSON in the man page."""
    return {
        "verdict": verdict(findings).value,
        "connect": connect,
        "findings": [to_document(finding) for finding in findings],
    }


def text(findings: Sequence[Finding]) -> str:
    """What `doctor` prints: a line for each finding, what mends it below it, and the verdict."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        mark = "PROBLEM" if finding.status is Status.PROBLEM else finding.status.value
        lines.append(names.printable(f"{mark:7}  {finding.check:{width}}  {finding.text}"))
        if finding.remedy:
            lines.append(names.printable(f"  try: {finding.remedy}"))
    return "".join(f"{line}\n" for line in [*lines, "", _summary(findings)])


def _summary(findings: Collection[Finding]) -> str:
    counts = Counter(finding.status for finding in findings)
    said = [
        f"{counts[status]} {status.value}{'s' * (counts[status] != 1)}"
        for status in (Status.PROBLEM, Status.WARNING)
        if counts[status]
    ]
    if not counts[Status.PROBLEM]:
        said.append("what snapshots need is there")
    return ", ".join(said)


# -- judging -----------------------------------------------------------------------------------------------------------


def kernel(release: str, remedies: Remedies) -> Finding:
    """Judge the kernel by its release, as uname(2) tells it."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        remedy = remedies.as_root("apt-get" if "debian" in remedies.distribution else "dnf", "upgrade")
        return problem("kernel", f"Linux {release} is too old: {oldest} is needed", f"{remedy}   (and restart)")
    return ok("kernel", f"Linux {release}")


def allow_other(fuse_conf: str, remedies: Remedies) -> Finding:
    """Judge, for an ordinary user, the text of /etc/fuse.conf (mount.fuse3(8)); '' where there is none."""
    if permits_allow_other(fuse_conf):
        return ok("--allow-other", "is permitted to ordinary users")
    return warning(
        "--allow-other",
        "cannot be used: /etc/fuse.conf does not permit it to ordinary users",
        f"echo user_allow_other | {remedies.as_root('tee', '-a', '/etc/fuse.conf')}",
    )


def propagation(root_is_shared: bool, remedies: Remedies) -> Finding:
    """Judge whether file systems that are mounted later reach QEMU, which lives in a mount namespace of its own."""
    if root_is_shared:
        return ok("mount propagation", "/ is shared: QEMU sees file systems that are mounted later")
    return warning(
        "mount propagation",
        "/ is private: VMs that run do not see file systems that are mounted after their start",
        remedies.as_root("mount", "--make-rshared", "/"),
    )


def qemu(version: str, supports_backup: bool, remedies: Remedies) -> Finding:
    """Judge QEMU by what libvirt tells of it (its domain capabilities)."""
    if supports_backup:
        return ok("QEMU", f"{version}, with backup jobs")
    return problem("QEMU", f"{version}: libvirt knows of no backup jobs with it", remedies.install("QEMU", "libvirt"))


@dataclass(frozen=True)
class Place:
    """A directory for scratch files, and what it lies on."""

    path: str
    fstype: str
    free_bytes: int
    rotates: bool
    is_default: bool = False  # scratch files go there unasked

    @property
    def description(self) -> str:
        """In words."""
        what = f"{self.path}: {units.size(self.free_bytes)} free, {self.fstype}"
        return f"{what}, on a rotating disk as the kernel says" if self.rotates else what


def scratch(place: Place, remedy: str, *, has_others: bool = False) -> Finding:
    """Judge a place for scratch files; `has_others`: where it is the default, take thinks of the directories of a VM's
    images too.
    """
    reason = why_not(place.fstype) if place.is_default else None
    if reason:
        text = f"{place.path}, the default, is not used: {reason}"
        if not has_others:
            return problem("scratch", text, remedy)
        return warning("scratch", f"{text}; beside a VM's images there may be a place", remedy)
    if place.fstype in MEMORY:
        return problem("scratch", f"{place.path} is in memory ({place.fstype}): what guests overwrite fills it", remedy)
    if place.free_bytes < FLOOR_BYTES:
        return problem("scratch", f"{place.description}; at least {units.size(FLOOR_BYTES)} is needed", remedy)
    if place.free_bytes < LITTLE_BYTES:
        return warning("scratch", f"{place.description}: that is little", remedy)
    return ok("scratch", f"{place.description}; QEMU's user can write there")


@dataclass(frozen=True)
class SELinux:
    """What selinuxfs tells."""

    is_enforcing: bool
    lets_qemu_use_fuse: bool  # the boolean virt_use_fusefs


def confinement(models: Collection[str], selinux: SELinux | None, remedies: Remedies) -> Finding:
    """Judge what keeps QEMU apart from the host: `models` are those of libvirt's security drivers."""
    if "selinux" in models and selinux:
        if not selinux.is_enforcing:
            return ok("confinement", "SELinux is permissive")
        if not selinux.lets_qemu_use_fuse:
            return warning(
                "confinement",
                "SELinux keeps scratch VMs (boot) from the view, which is a FUSE file system",
                remedies.as_root("setsebool", "-P", "virt_use_fusefs", "on"),
            )
        return ok("confinement", "SELinux is enforcing; libvirt labels scratch files, and QEMU may use FUSE")
    if "apparmor" in models:
        return ok("confinement", "AppArmor: libvirt adds scratch files and overlays to a VM's profile")
    return ok("confinement", "QEMU is not confined by AppArmor or SELinux")


@dataclass(frozen=True)
class Program:
    """A program that is called."""

    name: str
    use: str | None = None  # what alone needs it; None: every snapshot


def programs(faults: Sequence[tuple[Program, str]], remedies: Remedies) -> list[Finding]:
    """Judge the programs that cannot be called, each with the reason: 'is missing'."""
    findings = []
    needed = [(program, fault) for program, fault in faults if program.use is None]
    if needed:
        text = ", ".join(f"{program.name} {fault}" for program, fault in needed)
        findings.append(problem("programs", text, remedies.install(*(program.name for program, _ in needed))))
    others = [(program, fault) for program, fault in faults if program.use]
    if others:
        text = ", ".join(f"{program.name} {fault}, for {program.use}" for program, fault in others)
        findings.append(warning("programs", text, remedies.install(*(program.name for program, _ in others))))
    return findings


def kvm(fault: str | None, module: str | None, remedies: Remedies) -> Finding:
    """Judge whether scratch VMs can run with KVM.

    `fault` is what went wrong with /dev/kvm, None for nothing; `module` the processor's part of KVM, None if it
    offers no virtualisation.
    """
    if fault is None:
        return ok("KVM", "/dev/kvm can be opened by you")
    slow = "scratch VMs (boot) run without KVM, slowly"
    if module is None:
        remedy = "switch VT-x or AMD-V on, in the firmware or for this VM"
        return warning("KVM", f"{slow}: the processor offers no virtualisation", remedy)
    if fault == MISSING:
        return warning("KVM", f"{slow}: /dev/kvm is missing", remedies.as_root("modprobe", module))
    return warning("KVM", f"{slow}: /dev/kvm: {fault}", remedies.as_root("chmod", "666", "/dev/kvm"))


def kvm_of_qemu(uid: int, remedies: Remedies) -> Finding:
    """Tell that QEMU's user may not open /dev/kvm, which is there."""
    text = (
        f"/dev/kvm cannot be opened by QEMU's user (uid {uid}): scratch VMs (boot) run without KVM, slowly, and start "
        "late, since libvirt probes QEMU anew each time"
    )
    return warning("KVM", text, remedies.as_root("chmod", "666", "/dev/kvm"))


def runtime_directory(path: str, mode: int | None, is_ours: bool, remedies: Remedies) -> Finding:
    """Judge the directory of the runtime records; `mode` is None if it does not exist."""
    if mode is None:
        return ok("runtime directory", f"{path} is made when it is needed")
    if not is_ours:
        remedy = remedies.as_root("mv", path, f"{path}.other")
        return problem("runtime directory", f"{path} belongs to another user, or is no directory", remedy)
    if mode & 0o077:
        remedy = names.command("chmod", "700", path)
        return problem("runtime directory", f"{path} is open to others (mode {mode:03o})", remedy)
    return ok("runtime directory", f"{path}, closed to others")
