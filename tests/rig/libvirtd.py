"""A libvirt daemon for the tests: the host's own where one answers, else one started here and stopped again."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SYSTEM = "qemu:///system"
START_S = 60
STOP_S = 60  # libvirtd may wait 30 s for a thread of its own
_UNITS = tuple(
    f"{daemon}{kind}"
    for kind in (".socket", "-ro.socket", "-admin.socket", ".service")
    for daemon in ("libvirtd", "virtqemud")
)
# How to start what runs guests (sched(7)).  Without KVM a guest keeps processors busy with threads that wake each
# other; if there are more guests than processors, a command would lose its own at each wakeup, and take minutes.
AS_BATCH = ["chrt", "--batch", "0"]
PID_FILES = {"virtlogd": Path("/run/virtlogd.pid"), "libvirtd": Path("/run/libvirtd.pid")}


def answers(uri: str = SYSTEM) -> bool:
    """Whether a libvirt daemon answers at the URI."""
    return subprocess.run(["virsh", "-q", "-c", uri, "list"], capture_output=True).returncode == 0


@contextlib.contextmanager
def running() -> Iterator[list[str]]:
    """A libvirt daemon that answers at qemu:///system; yields the names of the daemons that had to be started.

    Where a service manager runs, the daemon is its affair; elsewhere (a container, a test machine) virtlogd and
    libvirtd are started and, at the end, stopped.
    """
    if answers():
        yield []
        return
    if _service_manager_runs():
        unit = "libvirtd" if _unit_exists("libvirtd") else "virtqemud.socket"
        was_active = _is_active(unit)
        subprocess.run(["systemctl", "start", unit], check=True)
        try:
            wait_for(answers, "libvirt answers")
            yield [unit]
        finally:
            if not was_active:
                subprocess.run(["systemctl", "stop", unit])
        return
    with device_rights():
        started = [name for name in PID_FILES if start(name)]
        try:
            wait_for(answers, "libvirt answers")
            yield started
        finally:
            for name in reversed(started):
                stop(name)


@contextlib.contextmanager
def device_rights() -> Iterator[None]:
    """Give /dev/kvm and /dev/fuse the modes of udev's rules, where no udev has done it, for as long as the block lasts.

    libvirt probes each QEMU anew for every question (4 s, dozens of times) while QEMU's user may not open /dev/kvm.
    """
    before = {}
    for device in (Path("/dev/kvm"), Path("/dev/fuse")):
        if device.exists():
            before[device] = stat.S_IMODE(device.stat().st_mode)
            device.chmod(0o666)
    try:
        yield
    finally:
        for device, mode in before.items():
            device.chmod(mode)


@contextlib.contextmanager
def stopped(how: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """No libvirt daemon runs in the block, whoever started it; guests go on.  SIGKILL gives it no time to tidy up."""
    managed = _service_manager_runs()
    units = [unit for unit in _UNITS if managed and _is_active(unit)]
    if managed:
        if how == signal.SIGKILL:
            subprocess.run(["systemctl", "kill", "--signal", "SIGKILL", *units], check=True)
        subprocess.run(["systemctl", "stop", *units], check=True)
    else:
        stop("libvirtd", how)
    try:
        yield
    finally:
        if managed:
            subprocess.run(["systemctl", "start", *units], check=True)
        else:
            start("libvirtd")
        wait_for(answers, "libvirt answers")


def _service_manager_runs() -> bool:
    return Path("/run/systemd/system").exists()


def _is_active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "-q", unit]).returncode == 0


def _unit_exists(unit: str) -> bool:
    return subprocess.run(["systemctl", "cat", unit], capture_output=True).returncode == 0


def start(name: str) -> bool:
    """Start a daemon that does not run yet; return whether it was started.  Its guests inherit how it is scheduled."""
    if _pid(name):
        return False
    subprocess.run([*AS_BATCH, name, "-d"], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return True


def stop(name: str, how: signal.Signals = signal.SIGTERM) -> None:
    """Stop a daemon and wait until it is gone; guests stay."""
    pid = _pid(name)
    if pid:
        os.kill(pid, how)
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), f"{name} has ended", STOP_S)


def _pid(name: str) -> int | None:
    try:
        pid = int(PID_FILES[name].read_text())
    except (FileNotFoundError, ValueError):
        return None
    try:
        running_name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pid if running_name == name and not _is_zombie(pid) else None


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], object], what: str, seconds: float = START_S) -> None:
    """Wait until condition() is true; a TimeoutError names what was waited for.

    It is looked at ever less often, as many a condition is a command, which takes a processor from what is waited for.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        if waited > seconds:
            raise TimeoutError(f"waited {seconds:g} s until {what}")
        time.sleep(min(max(0.02, waited / 10), 0.3))
