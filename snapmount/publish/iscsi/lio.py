"""Publishes through LIO, the Linux kernel's own target, which rtslib-fb controls by way of configfs.

FUSE file -> loop device -> block backstore -> LUN.  Never LIO's fileio: it opens files for writing, and fills short
reads with zeros.  All that is made is found again by its name alone: loop devices and backstores are called
snapmount-ID-DISK, the target has the snapshot's IQN.  So nothing need be written down, and nothing else is touched;
rtslib's saved configuration neither, which would hold the secrets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.iscsi import AUTHORITY, Credentials, Lun, Portal, Session, Target
from ...errors import LeftoverError, MissingError, SnapmountError, StateError, UnreachableError
from . import loops, portals

try:
    import rtslib_fb as rtslib
except ImportError:  # pyudev, which it needs, looks for libudev as it is loaded
    rtslib = None

NAME = "lio"

CONFIGFS = Path("/sys/kernel/config")
LIO = CONFIGFS / "target"
DBROOT = Path("/etc/target")  # rtslib tells the kernel to keep persistent reservations there, and insists on it
MODULES = ("configfs", "loop", "target_core_mod", "target_core_iblock", "iscsi_target_mod")
TAG = 1  # of the only portal group


def missing() -> tuple[str, str] | None:
    """Why LIO cannot be used here, and the command that mends it."""
    if rtslib is None:
        return "rtslib-fb cannot be loaded: libudev is missing", "sudo apt-get install libudev1"
    if os.geteuid() != 0:
        return "only root can control LIO", "sudo -i"
    try:
        absent = [module for module in MODULES if not _is_loaded(module) and not _modprobe(module, "--dry-run")]
    except FileNotFoundError:
        return "modprobe is missing", "sudo apt-get install kmod"
    if absent:
        kernel = platform.release()
        where = f"linux-modules-extra-{kernel}" if "Ubuntu" in platform.version() else "linux-image-amd64"
        return f"the kernel {kernel} has no LIO: no module {', '.join(absent)}", f"sudo apt-get install {where}"
    return None


def _is_loaded(module: str) -> bool:
    return Path("/sys/module", module).exists()


def _modprobe(module: str, *options: str) -> bool:
    return subprocess.run(["modprobe", "--quiet", *options, module], stdin=subprocess.DEVNULL).returncode == 0


def publish(directory: Path, target: Target, files: list[str], credentials: Credentials) -> None:
    """Publish the files as the target's LUNs, in their order.

    Whoever logs in must know the secret; every LUN is read-only as a backstore, and write-protected as a LUN.
    Raises UsageError, StateError, MissingError or UnreachableError; withdraw() undoes what has been made by then.
    """
    fault = missing()
    if fault:
        raise MissingError(*fault)
    portals.check_addresses(target.portals)
    with _told("cannot publish", StateError):
        _prepare_kernel()
        for portal in target.portals:
            check_free(portal)
        stores = [
            _make_backstore(_prefix(directory), _index(directory, lun), lun, file)
            for lun, file in zip(target.luns, files, strict=True)
        ]
        _make_target(target, stores, credentials)


@contextlib.contextmanager
def _told(what: str, kind: type[SnapmountError]) -> Iterator[None]:
    """Raise what rtslib and the kernel raise as an error of this kind."""
    try:
        yield
    except (rtslib.RTSLibError, OSError) as error:
        raise kind(f"LIO {what}: {error}") from error


def _prepare_kernel() -> None:
    """Load the modules and mount configfs, which rtslib up to 2.2.4 does not manage."""
    for module in MODULES:
        if not _is_loaded(module) and not _modprobe(module):
            raise MissingError(f"the kernel module {module} cannot be loaded", f"sudo modprobe --verbose {module}")
    if not CONFIGFS.is_mount():
        done = subprocess.run(["mount", "-t", "configfs", "configfs", CONFIGFS], capture_output=True, text=True)
        if done.returncode != 0:
            raise MissingError(f"configfs cannot be mounted: {done.stderr.strip()}")
    DBROOT.mkdir(mode=0o755, exist_ok=True)
    warnings.filterwarnings("ignore", "Cannot set dbroot")  # others' devices are there, and it does not matter
    rtslib.RTSRoot()  # sets it as long as there is no device; later rtslib complains each time


def shares(portal: Portal) -> bool:
    """Whether targets of ours, and no others, listen there.

    LIO lets targets share a portal.  Those of other snapshots do; with others' we would stop their logins for a moment.
    """
    at_portal = [np.parents[2].name for np in LIO.glob("iscsi/*/tpgt_*/np/*") if np.name == str(portal)]
    return bool(at_portal) and all(iqn.startswith(f"{AUTHORITY}:") for iqn in at_portal)


def check_free(portal: Portal) -> None:
    """Raises PortalInUseError if somebody else listens at the portal."""
    if shares(portal):
        return
    at_port = {np.parents[2].name for np in LIO.glob(f"iscsi/*/tpgt_*/np/*:{portal.port}")}
    portals.check_free(portal, [f"the kernel's target {iqn}" for iqn in sorted(at_port)])


def _prefix(directory: Path) -> str:
    return f"snapmount-{directory.name}-"


def _index(directory: Path, lun: Lun) -> int:
    """The number of a backstore's directory, core/iblock_NUMBER.

    It follows from the snapshot's id, so it is known beforehand and afterwards, needs no lock against other processes,
    and is far above those that rtslib gives away.
    """
    return (int(directory.name, 16) << 12) + lun.number


def _make_backstore(prefix: str, index: int, lun: Lun, file: str) -> Any:
    name = f"{prefix}{lun.disk}"
    with loops.attached(file, name, lun.logical_block_size_bytes) as device:  # whose blocks are the backstore's
        store = rtslib.BlockStorageObject(name, dev=device, wwn=lun.serial, readonly=True, index=index)
    for attribute, text in (("vendor_id", lun.vendor), ("product_id", lun.product)):
        path = Path(store.path, "wwn", attribute)
        if path.exists():  # older kernels have none, and say LIO-ORG and IBLOCK
            path.write_text(text)
    return store


def _make_target(target: Target, stores: list[Any], credentials: Credentials) -> None:
    """Make the target, and open it last."""
    group = rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), target.iqn, mode="create"), TAG, mode="create")
    everyone = int(not target.initiators)
    for attribute, value in {
        "authentication": 1,
        "generate_node_acls": everyone,  # a session without an ACL then has the group's secret
        "demo_mode_write_protect": 1,  # and its LUNs
        "demo_mode_discovery": everyone,
    }.items():
        group.set_attribute(attribute, value)
    for lun, store in zip(target.luns, stores, strict=True):
        rtslib.LUN(group, lun.number, store)
    _set_secrets(group, credentials)
    for initiator in target.initiators:
        acl = rtslib.NodeACL(group, initiator, mode="create")
        _set_secrets(acl, credentials)
        for lun in target.luns:
            rtslib.MappedLUN(acl, lun.number, lun.number, write_protect=True)
    for portal in target.portals:
        address = f"[{portal.address}]" if portal.is_ipv6 else portal.address
        rtslib.NetworkPortal(group, address, portal.port, mode="create")
    group.enable = True


def _set_secrets(gate: Any, credentials: Credentials) -> None:
    """Let through this gate, an ACL or the whole group, only who knows the secret."""
    gate.chap_userid, gate.chap_password = credentials.user, credentials.secret
    if credentials.mutual_user and credentials.mutual_secret:
        gate.chap_mutual_userid, gate.chap_mutual_password = credentials.mutual_user, credentials.mutual_secret


def sessions(directory: Path, target: Target) -> list[Session]:
    """Who is logged in.

    Where initiators are not admitted by name the kernel tells no more than their names, and counts by LUN alone: so
    only for a lone session, in whole MiB, and with what earlier ones have read.  Raises UnreachableError.
    """
    group = LIO / "iscsi" / target.iqn / f"tpgt_{TAG}"
    with _told("does not tell the sessions", UnreachableError):
        if not group.is_dir():
            return []
        named = [session for acl in (group / "acls").iterdir() for session in _session(acl)]
        others = (group / "dynamic_sessions").read_text().replace("\0", " ").split()
        read = _read_in_all(group) if len(others) == 1 else None
        return named + [Session(name, None, read) for name in others]


def _session(acl: Path) -> Iterator[Session]:
    """The session of an initiator that has an ACL: the kernel shows one each."""
    words = (acl / "info").read_text().split()
    if "Address" in words:
        sent = acl / "fabric_statistics" / "iscsi_sess_stats" / "txdata_octs"
        yield Session(acl.name, words[words.index("Address") + 1], int(sent.read_text()))


def _read_in_all(group: Path) -> int:
    """Bytes read from all LUNs, in whole MiB of each."""
    counters = group.glob("lun/lun_*/statistics/scsi_tgt_port/read_mbytes")
    return sum(int(counter.read_text()) for counter in counters) << 20


def withdraw(directory: Path, target: Target) -> None:
    """Undo what publish() did or began, also with initiators logged in; may be repeated.

    Raises LeftoverError.  Ending a session waits for its reads, for ever where the mount hangs: all before that cannot
    hang, and all after it holds no more than the file open.
    """
    if (LIO / "core").is_dir():
        with _told(f"cannot withdraw {target.iqn}", LeftoverError):
            _remove_target(target.iqn)
            _remove_backstores(directory, target)
    loops.wait_gone(_prefix(directory))


def _remove_target(iqn: str) -> None:
    if not (LIO / "iscsi" / iqn).is_dir():
        return
    found = rtslib.Target(rtslib.FabricModule("iscsi"), iqn, mode="lookup")
    for group in found.tpgs:
        for portal in group.network_portals:  # first: nobody else can log in, and the port is free
            portal.delete()
    found.delete()


def _remove_backstores(directory: Path, target: Target) -> None:
    """Remove them without rtslib, which would also remove what others may have made of them, and what lies between."""
    for lun in target.luns:
        parent = LIO / "core" / f"iblock_{_index(directory, lun)}"
        for path in (parent / f"{_prefix(directory)}{lun.disk}", parent):
            try:
                path.rmdir()
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise


def by_hand(directory: Path, target: Target) -> list[list[str]]:
    """The words of the commands that withdraw what is there."""
    words = [["targetcli", "/iscsi", "delete", target.iqn]] if (LIO / "iscsi" / target.iqn).is_dir() else []
    for lun in target.luns:
        name = _prefix(directory) + lun.disk
        if (LIO / "core" / f"iblock_{_index(directory, lun)}" / name).is_dir():
            words.append(["targetcli", "/backstores/block", "delete", name])
    return words
