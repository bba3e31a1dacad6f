"""Publishes with tgtd(8), the target in user space: one of the snapshot's own, with a control socket of its own.

That socket stands in tgtd's environment from its first moment: so even one that was started but not yet recorded is
found, and a tgtd of the system is never taken for ours.  All that tgtd keeps dies with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO

from ...core.iscsi import Credentials, Lun, Portal, Session, Target
from ...core.names import SOCKET_PATH_MAX, command
from ...errors import LeftoverError, MissingError, StateError, UnreachableError
from ...host.locks import cannot_write
from ...host.processes import Process
from ...records import documents
from . import portals
from .tgtadm import Direction, Mode, Op, RefusedError, Tgtd

NAME = "tgt"
START_S = 10.0
DEATH_S = 5.0
POLL_S = 0.02
_SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_SOCKET_VARIABLE = "TGT_IPC_SOCKET"  # to which tgtd appends its control port (ipc_init() in usr/mgmt.c)
_CONTROL_PORT = 0
_NO_DRIVER = 3  # TGTADM_NO_DRIVER


def missing() -> tuple[str, str] | None:
    """Why tgtd cannot be used on this host, and the command that mends it."""
    if shutil.which("tgtd", path=_SYSTEM_PATH):
        return None
    return "tgtd is not installed", "apt-get install tgt"


def shares(portal: Portal) -> bool:
    """Never: each snapshot has a tgtd of its own."""
    return False


def check_free(portal: Portal) -> None:
    """Raises PortalInUseError if something listens at the portal."""
    portals.check_free(portal)


def publish(directory: Path, target: Target, files: list[str], credentials: Credentials) -> None:
    """Start a tgtd that shows the files as the target's LUNs; it can be reached only once all is set.

    Raises UsageError, MissingError, StateError or UnreachableError; what has been made until then, withdraw() undoes.
    """
    fault = missing()
    if fault:
        raise MissingError(*fault)
    portals.check_addresses(target.portals)
    pid = _start(directory)
    tgtd, tid = Tgtd(_socket(directory)), _tid(target)
    try:
        _close_all(tgtd)
        tgtd.ask(Mode.TARGET, Op.NEW, f"targetname={target.iqn}", tid=tid)
        for lun, file in zip(target.luns, files, strict=True):
            _add_lun(tgtd, tid, lun, _alias(directory, lun, file))
        _check_not_writable(pid, files)
        _admit(tgtd, tid, target, credentials)
    except RefusedError as error:
        raise StateError(f"tgtd: {error}: {_last_words(directory)}") from error
    except OSError as error:
        raise UnreachableError(f"tgtd does not answer: {error}: {_last_words(directory)}") from error
    for portal in target.portals:
        _listen(tgtd, portal)


def sessions(directory: Path, target: Target) -> list[Session]:
    """Who is logged in, and how much was sent to each.  Raises UnreachableError."""
    tgtd, tid = Tgtd(_socket(directory)), _tid(target)
    try:
        connections = tgtd.ask(Mode.CONNECTION, Op.SHOW, tid=tid)
        statistics = tgtd.ask(Mode.TARGET, Op.STATS, tid=tid)
    except (OSError, RefusedError) as error:
        raise UnreachableError(f"the snapshot's tgtd does not tell who is logged in: {error}") from error
    return sessions_of(connections, statistics)


def sessions_of(connections: str, statistics: str) -> list[Session]:
    """What tgtd's two replies say (iscsi_target_show_connections() in usr/iscsi/target.c, tgt_stat_line() in
    usr/target.c).
    """
    bytes_read: dict[str, int] = {}
    for line in statistics.splitlines()[1:]:
        _target, _lun, session, _submitted, _commands, done, *_rest = line.split()
        bytes_read[session] = bytes_read.get(session, 0) + int(done)
    found = re.findall(
        r"^Session: (\d+)\n +Connection: \d+\n +Initiator: (.*)\n +(?:IP Address: (\S+))?", connections, re.MULTILINE
    )
    return [Session(initiator, address or None, bytes_read.get(number)) for number, initiator, address in found]


def withdraw(directory: Path, target: Target) -> None:
    """Kill the snapshot's tgtd, and remove its files.

    Initiators that are logged in see their connections closed, as with an orderly end.  Raises LeftoverError for a tgtd
    that waits in the kernel for an answer of the mount, if only to close a file: it ends with that.
    """
    daemon = _recorded(directory) or _found(directory)
    if daemon:
        with contextlib.suppress(StateError):  # where nothing can be written, it has to be killed all the same
            _record(directory, daemon)
        if not daemon.kill(DEATH_S):
            raise LeftoverError(
                f"tgtd (pid {daemon.pid}) hangs in a call to the mount, and holds {target.iqn} until that ends",
                command("snapmount", "delete", directory.name),
            )
    for path in directory.glob("tgtd*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise LeftoverError(f"{path} cannot be removed: {error.strerror}") from error


def by_hand(directory: Path, target: Target) -> list[list[str]]:
    """The words of the commands that withdraw what is there."""
    daemon = _recorded(directory) or _found(directory)
    return [["kill", "-KILL", str(daemon.pid)]] if daemon and daemon.runs() else []


# -- the process -------------------------------------------------------------------------------------------------------


def _start(directory: Path) -> int:
    """Start tgtd and return its pid when it answers.  It listens at a loopback port that initiators are not told.

    Without that, or where the portal it is given is in use, tgtd would listen at all addresses (iscsi_tcp_init() in
    usr/iscsi/iscsi_tcp.c).
    """
    if len(os.fsencode(_socket(directory))) > SOCKET_PATH_MAX:
        raise StateError(f"the path of tgtd's socket is too long: {_socket(directory)}")
    tgtd = shutil.which("tgtd", path=_SYSTEM_PATH) or "tgtd"
    with _opened_log(directory) as log:
        process = subprocess.Popen(
            [tgtd, "--foreground", "--control-port", str(_CONTROL_PORT), "--iscsi", "portal=127.0.0.1:0"],
            env={_SOCKET_VARIABLE: _socket_prefix(directory), "PATH": os.defpath, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            start_new_session=True,
        )
    _record(directory, Process.of_pid(process.pid))
    deadline = time.monotonic() + START_S
    while not _answers(Tgtd(_socket(directory))):
        if process.poll() is not None:
            raise StateError(f"tgtd has ended while it started: {_last_words(directory)}")
        if time.monotonic() > deadline:
            raise UnreachableError(f"tgtd does not answer {START_S:g} s after its start: {_last_words(directory)}")
        time.sleep(POLL_S)
    return process.pid


def _opened_log(directory: Path) -> IO[bytes]:
    """Raises StateError."""
    try:
        return open(_log(directory), "wb", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise cannot_write(directory, error) from error


def _answers(tgtd: Tgtd) -> bool:
    try:
        tgtd.ask(Mode.PORTAL, Op.SHOW)
    except OSError:
        return False
    return True


def _record(directory: Path, daemon: Process) -> None:
    """Note our tgtd: of one that was killed, but hangs, the environment can no longer be read.  Raises StateError."""
    try:
        documents.write(_record_path(directory), daemon)
    except OSError as error:
        raise cannot_write(directory, error) from error


def _recorded(directory: Path) -> Process | None:
    try:
        return documents.read(_record_path(directory), Process)
    except StateError:  # it is found by its environment then
        return None


def _found(directory: Path) -> Process | None:
    """Our tgtd, as its environment tells."""
    wanted = os.fsencode(f"{_SOCKET_VARIABLE}={_socket_prefix(directory)}")
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            # The environment of others is not looked at: to read that of one which hangs in a page fault would hang.
            if comm.read_text() == "tgtd\n" and wanted in (comm.parent / "environ").read_bytes().split(b"\0"):
                return Process.of_pid(int(comm.parent.name))
    return None


def _record_path(directory: Path) -> Path:
    return directory / "tgtd.process"


def _socket_prefix(directory: Path) -> str:
    return str(directory / "tgtd")


def _socket(directory: Path) -> Path:
    return Path(f"{_socket_prefix(directory)}.{_CONTROL_PORT}")


def _log(directory: Path) -> Path:
    return directory / "tgtd.log"


def _last_words(directory: Path) -> str:
    """The last lines that tgtd has written: in the foreground it has no other log."""
    said = " / ".join(_log(directory).read_text(errors="replace").splitlines()[-3:])
    if not said and not os.statvfs(directory).f_bavail:  # it could not even say so
        return f"{directory}: {os.strerror(errno.ENOSPC)}"
    return said or "it has not said why"


# -- what it shows -----------------------------------------------------------------------------------------------------


def _close_all(tgtd: Tgtd) -> None:
    """Close the portal that tgtd was started with, and all that its RDMA driver has opened."""
    try:
        tgtd.ask(Mode.DRIVER, Op.STOP, driver="iser")
    except RefusedError as error:
        if error.code != _NO_DRIVER:
            raise
    for portal in re.findall(r"^Portal: (.*),\d+$", tgtd.ask(Mode.PORTAL, Op.SHOW), re.MULTILINE):
        tgtd.ask(Mode.PORTAL, Op.DELETE, f"portal={portal}")


def _tid(target: Target) -> int:
    """tgtd's number for the target, other in each snapshot: it is part of an NAA designator of the LUNs, by which
    initiators tell disks apart.  28 bits: tgtd overwrites the upper four (update_vpd_83() in usr/spc.c).
    """
    return int(target.luns[0].serial[:7], 16) or 1


def _alias(directory: Path, lun: Lun, file: str) -> str:
    """A name for the file that is safe in tgtd's parameters, where a comma separates; relative to the directory that
    tgtd works in.
    """
    alias = directory / f"tgtd-lun{lun.number}"
    alias.symlink_to(file)
    return alias.name


def _add_lun(tgtd: Tgtd, tid: int, lun: Lun, path: str) -> None:
    """Add a LUN.  As "thin" it tells its holes (GET LBA STATUS); UNMAP is refused, as all writes are."""
    blocks = f"blocksize={lun.logical_block_size_bytes}"
    tgtd.ask(Mode.DEVICE, Op.NEW, f"path={path},bstype=rdwr,{blocks}", tid=tid, lun=lun.number)
    identity = f"scsi_id={lun.serial},scsi_sn={lun.serial},vendor_id={lun.vendor},product_id={lun.product}"
    tgtd.ask(Mode.DEVICE, Op.UPDATE, f"{identity},readonly=1,thin_provisioning=1", tid=tid, lun=lun.number)


def _check_not_writable(pid: int, files: list[str]) -> None:
    """tgtd opens for reading only what it may not write (bs_rdwr_open() in usr/bs_rdwr.c): files of a read-only mount.

    The files are absolute paths without symbolic links.  Raises StateError.
    """
    modes: dict[str, set[int]] = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the connection of the last request, which tgtd closes meanwhile
            status = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            flags = dict(line.split(":", 1) for line in status.splitlines())["flags"]
            modes.setdefault(os.readlink(descriptor), set()).add(int(flags, 8) & os.O_ACCMODE)
    for file in files:
        if modes.get(file) != {os.O_RDONLY}:
            raise StateError(f"tgtd has not opened {file} read-only: is it on a read-only mount?")


def _admit(tgtd: Tgtd, tid: int, target: Target, credentials: Credentials) -> None:
    """Ask for CHAP, and admit the initiators: by names only, since tgtd takes a name or an address for enough."""
    _bind_account(tgtd, tid, credentials.user, credentials.secret, Direction.INCOMING)
    if credentials.mutual_user is not None and credentials.mutual_secret is not None:
        _bind_account(tgtd, tid, credentials.mutual_user, credentials.mutual_secret, Direction.OUTGOING)
    for name in target.initiators:
        tgtd.ask(Mode.TARGET, Op.BIND, f"initiator-name={name}", tid=tid)
    if not target.initiators:
        tgtd.ask(Mode.TARGET, Op.BIND, "initiator-address=ALL", tid=tid)


def _bind_account(tgtd: Tgtd, tid: int, user: str, secret: str, direction: Direction) -> None:
    tgtd.ask(Mode.ACCOUNT, Op.NEW, f"user={user},password={secret}")
    tgtd.ask(Mode.ACCOUNT, Op.BIND, f"user={user}", tid=tid, direction=direction)


def _listen(tgtd: Tgtd, portal: Portal) -> None:
    try:
        tgtd.ask(Mode.PORTAL, Op.NEW, f"portal={portal}")
    except RefusedError:
        raise portals.refusal(portal) from None
    except OSError as error:
        raise UnreachableError(f"tgtd does not answer: {error}") from error
