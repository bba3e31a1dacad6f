"""The checks of the host itself: Python, kernel, FUSE, KVM, programs, iSCSI, and what snapshots have left."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from ..core import names
from ..core.iscsi import LOOPBACK, PORT, PORTS, Portal, PortalRequest
from ..core.lifecycle import State
from ..host import blocking, mounts
from ..host import kvm as kvm_device
from ..publish import iscsi
from ..publish.fuse.extension import extension
from ..records.store import Store
from ..sources import kinds
from . import health
from .health import Finding, Program
from .subject import Subject

HOST_S = 5.0
_KVM_GET_API_VERSION = 0xAE00  # <linux/kvm.h>
_KVM_API = 12
_DEAD = (State.DEAD, State.LEFTOVER)

# The module, its project at PyPI where it has one, and its package.
_MODULES = (
    ("libvirt", "libvirt-python", "python3-libvirt"),
    ("nbd", "", "python3-libnbd"),
    ("pyfuse3", "pyfuse3", "python3-pyfuse3"),
)
_FOR_LIO = ("rtslib_fb", "rtslib-fb", "python3-rtslib")
_PROGRAMS = (
    *map(Program, ("qemu-img", "findmnt", "dd", "test")),
    Program("fallocate", "--scratch-reserve"),
    Program("virsh", "boot --console"),
)
_AS_ROOT = (Program("mount"), Program("umount"), Program("wipefs", "--scratch-device"))
_BY_PIP = ("pyfuse3", "rtslib_fb")  # the others are bound to the distribution's libraries


async def modules(subject: Subject) -> list[Finding]:
    """The modules that not every Python has, and the C extension."""
    loaded, findings = [], []
    for module, project, package in (*_MODULES, *([_FOR_LIO] if subject.remedies.is_root else [])):
        fault = _fault_of(module)
        if fault is None:
            loaded.append(f"{module} {_version_of(project)}".rstrip())
            continue
        remedy = _pip(project) if module in _BY_PIP and _in_virtualenv() else subject.remedies.install(package)
        if module == _FOR_LIO[0]:
            findings.append(health.warning("Python modules", f"for the kernel's iSCSI target: {fault}", remedy))
        else:
            findings.append(health.problem("Python modules", fault, remedy))
    if loaded:
        findings.insert(0, health.ok("Python modules", ", ".join(loaded)))
    if extension:
        findings.append(health.ok("C extension", "holes are seen, and reads are fast"))
    else:
        text = "was not built: programs take holes for data, and reads are slow"
        findings.append(health.warning("C extension", text, _rebuild(subject)))
    return findings


def _fault_of(module: str) -> str | None:
    try:
        import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        return f"{module} is missing" if missing else f"{module} cannot be loaded: {error}"
    return None


def _version_of(project: str) -> str:
    try:
        return metadata.version(project) if project else ""
    except metadata.PackageNotFoundError:
        return ""


def _in_virtualenv() -> bool:
    return sys.prefix != sys.base_prefix


def _pip(*arguments: str) -> str:
    return names.command(sys.executable, "-m", "pip", "install", *arguments)


def _rebuild(subject: Subject) -> str:
    compiler = subject.remedies.install("a compiler")
    tree = Path(__file__).parents[2]
    if not (tree / "pyproject.toml").exists():
        return f"{compiler}   (and install snapmount anew)"
    return f"{compiler} && {_pip('--force-reinstall', '--no-deps', '-e', str(tree))}"


async def kernel(subject: Subject) -> list[Finding]:
    """The kernel's version."""
    return [health.kernel(os.uname().release, subject.remedies)]


async def fuse(subject: Subject) -> list[Finding]:
    """Whether this user can mount FUSE file systems."""
    remedies = subject.remedies
    fault = await blocking.call(HOST_S, _fault_of_device, "/dev/fuse")
    if fault is None:
        findings = [health.ok("FUSE", "/dev/fuse can be opened")]
    elif fault in (os.strerror(errno.EACCES), os.strerror(errno.EPERM)):
        text = f"/dev/fuse cannot be opened by you: {fault}"
        findings = [health.problem("FUSE", text, remedies.as_root("chmod", "666", "/dev/fuse"))]
    else:
        findings = [health.problem("FUSE", f"/dev/fuse: {fault}", remedies.as_root("modprobe", "fuse"))]
    if not remedies.is_root:
        if not subject.has("fusermount3"):
            findings.append(health.problem("FUSE", "fusermount3 is missing", remedies.install("fuse3")))
        findings.append(health.allow_other(mounts.fuse_conf(), remedies))
    return findings


def _fault_of_device(path: str) -> str | None:
    """Why the device cannot be opened, as a container for instance may forbid it, whatever its mode says."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return health.MISSING
    except OSError as error:
        return error.strerror
    return None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


async def kvm(subject: Subject) -> list[Finding]:
    """Whether scratch VMs can run with KVM."""
    fault = await blocking.call(HOST_S, _fault_of_kvm)
    return [health.kvm(fault, _kvm_module(_text_of(Path("/proc/cpuinfo"))), subject.remedies)]


def _fault_of_kvm() -> str | None:
    fault = _fault_of_device(kvm_device.DEVICE)
    if fault:
        return fault
    descriptor = os.open(kvm_device.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION)
    except OSError as error:
        return error.strerror
    finally:
        os.close(descriptor)
    return None if version == _KVM_API else f"its API version is {version}"


def _kvm_module(cpuinfo: str) -> str | None:
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else None


async def programs(subject: Subject) -> list[Finding]:
    """The programs that are called, as they are found by whoever calls them."""
    called = [*_PROGRAMS, *(_AS_ROOT if subject.remedies.is_root else ())]
    faults = [(program, fault) for program in called if (fault := await _fault_of_program(program.name))]
    return health.programs(faults, subject.remedies) or [health.ok("programs", ", ".join(each.name for each in called))]


async def _fault_of_program(program: str) -> str | None:
    """Why it cannot be run, in words that follow its name."""
    if not await blocking.call(HOST_S, shutil.which, program):
        return "is missing, or not in PATH"
    if program != "qemu-img":  # the others come with every system
        return None
    try:
        done = await blocking.run(HOST_S, [program, "--version"])
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    said = done.stderr.decode(errors="replace").strip()
    return f"cannot be run: {said or f'exit status {done.returncode}'}" if done.returncode else None


async def propagation(subject: Subject) -> list[Finding]:
    """Whether / is shared.  Of no interest to a user's own VMs: their QEMU lives in the user's namespace."""
    if not subject.remedies.is_root:
        return []
    root = mounts.holding("/", mounts.current())
    return [health.propagation(root is not None and root.is_shared, subject.remedies)]


async def iscsi_targets(subject: Subject) -> list[Finding]:
    """Which target software can be used, and where LUNs would listen."""
    if not subject.remedies.is_root:
        return [health.skipped("iSCSI", "only root can publish snapshots over iSCSI")]
    faults = {backend: await iscsi.missing(backend) for backend in iscsi.BACKENDS}
    usable = [backend for backend, fault in faults.items() if fault is None]
    if usable:
        return [health.ok("iSCSI", f"targets that can be used: {', '.join(usable)}"), *await _port(usable[0])]
    text = "; ".join(fault[0] for fault in faults.values() if fault)
    return [health.warning("iSCSI", f"no target: {text}", subject.remedies.install("tgt"))]


async def _port(backend: str) -> list[Finding]:
    """Whether something else than snapshots has the port that LUNs get usually."""
    usual = PortalRequest(LOOPBACK, PORT)
    if usual.at(PORT) in await blocking.call(HOST_S, _portals_of_snapshots):
        return []
    try:
        await iscsi.free_ports(backend, [usual])
    except iscsi.PortalInUseError as error:
        free = await iscsi.free_ports(backend, [PortalRequest(LOOPBACK)])
        if not free:
            text = f"{error.message}, and all ports up to {PORTS.stop - 1} are in use"
            return [health.warning("iSCSI", text, f"snapmount --iscsi --portal {LOOPBACK}:{PORTS.stop} VM")]
        return [health.ok("iSCSI", f"{error.message}: LUNs get port {free[0]} unless --portal says otherwise")]
    return []


def _portals_of_snapshots() -> list[Portal]:
    return [
        portal
        for record in Store.of_user(kinds.check).load_all()[0]
        if record.publication
        for portal in record.publication.target.portals
    ]


async def records(subject: Subject) -> list[Finding]:
    """The runtime directory, and the snapshots that nobody serves any more."""
    return await blocking.call(HOST_S, lambda: list(_records(Store.of_user(kinds.check), subject)))


def _records(store: Store, subject: Subject) -> Iterator[Finding]:
    directory = store.directory
    try:
        status = directory.lstat()
    except FileNotFoundError:
        yield health.runtime_directory(str(directory), None, True, subject.remedies)
    else:
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        yield health.runtime_directory(str(directory), stat.S_IMODE(status.st_mode), is_ours, subject.remedies)
        if not is_ours:
            return
    found, broken = store.load_all()
    states = [(record, store.state(record)) for record in found]
    left = [(record, state) for record, state in states if state in _DEAD]
    for record, state in left:
        what = f"{record.id} of {record.snapshot.vm_name} is {state.value}"
        yield health.warning("snapshots", what, "snapmount recover")
    for error in broken:
        yield health.warning("snapshots", error.message, "snapmount recover")
    if not left and not broken:
        yield health.ok("snapshots", f"{len(found)}, none of them left over")
