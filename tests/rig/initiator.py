"""The kernel's own iSCSI initiator (open-iscsi), for tests in a VM: it is the whole machine's."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from snapmount.core.iscsi import Credentials, Portal, Target

from . import libvirtd

NAME = "iqn.2001-04.com.example:tests"
NO_OBJECTS = 21  # iscsiadm(8), exit status: iscsid answers, and there are no sessions
WAIT_S = 120.0  # nothing is fast in a VM without KVM


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until condition() is true; a TimeoutError names what was waited for."""
    libvirtd.wait_for(condition, what, WAIT_S)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """iscsid, under the name NAME."""
    Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={NAME}\n")
    subprocess.run(["modprobe", "-a", "iscsi_tcp", "sd_mod"], check=True)
    with subprocess.Popen(["iscsid", "--foreground"], start_new_session=True) as daemon:  # it kills its whole group
        wait_for(lambda: iscsiadm("-m", "session").returncode == NO_OBJECTS, "iscsid answers")
        yield
        daemon.terminate()


def iscsiadm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["iscsiadm", *arguments], capture_output=True, text=True, timeout=120)


def log_in(target: Target, portal: Portal, credentials: Credentials | None) -> subprocess.CompletedProcess[str]:
    """Try to log in, with CHAP where there are credentials; what iscsiadm says."""
    node = ["-m", "node", "-T", target.iqn, "-p", str(portal)]
    settings = {
        "node.session.timeo.replacement_timeout": "1",  # do not wait for targets that have gone
        "node.conn[0].timeo.logout_timeout": "1",
        "node.conn[0].timeo.login_timeout": "10",
        "node.session.initial_login_retry_max": "1",
    }
    if credentials:
        settings |= {
            "node.session.auth.authmethod": "CHAP",
            "node.session.auth.username": credentials.user,
            "node.session.auth.password": credentials.secret,
        }
        if credentials.mutual_user and credentials.mutual_secret:
            settings |= {
                "node.session.auth.username_in": credentials.mutual_user,
                "node.session.auth.password_in": credentials.mutual_secret,
            }
    iscsiadm(*node, "-o", "delete")
    iscsiadm(*node, "-o", "new")
    changes = [word for name, value in settings.items() for word in ("-n", name, "-v", value)]
    assert iscsiadm(*node, "-o", "update", *changes).returncode == 0
    return iscsiadm(*node, "--login")


def log_out(target: Target, portal: Portal) -> None:
    """End the session, whether or not the target still lives."""
    node = ["-m", "node", "-T", target.iqn, "-p", str(portal)]
    iscsiadm(*node, "--logout")
    iscsiadm(*node, "-o", "delete")


@contextlib.contextmanager
def session(target: Target, portal: Portal, credentials: Credentials) -> Iterator[list[Path]]:
    """A session for as long as the block lasts; yields the device of each LUN, such as /dev/sda."""
    done = log_in(target, portal, credentials)
    try:
        assert done.returncode == 0, done.stderr
        wait_for(lambda: len(_devices(target)) == len(target.luns), "the disks are there")
        yield _devices(target)
    finally:
        log_out(target, portal)


def _devices(target: Target) -> list[Path]:
    """The disks of the target's session, in the LUNs' order."""
    found = {}
    for session in Path("/sys/class/iscsi_session").iterdir():
        if (session / "targetname").read_text().strip() == target.iqn:
            for block in session.glob("device/target*/*/block/*"):
                found[int(block.parents[1].name.rpartition(":")[2])] = Path("/dev", block.name)
    return [found[number] for number in sorted(found)]


def read(device: Path, length: int) -> bytes:
    """The first bytes, past the page cache."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            return bytes(buffer[: os.preadv(descriptor, [buffer], 0)])
    finally:
        os.close(descriptor)
