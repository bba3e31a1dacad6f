"""Processes that are not ours to wait for: told apart from later ones with the same pid, and signalled by pidfd.

endings.py waits for their end, which needs trio.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KILLED_S = 10.0
OOM_SCORE_ADJ = -900


def boot_id() -> str:
    """What tells this run of the host from all others (random(4), proc_sys_kernel(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def close_inherited(keep: int = -1) -> None:
    """Close what the caller has left open: a lock, or a pipe that somebody reads to its end, must not last as we do."""
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(number)


def protect_from_oom_killer() -> None:
    """Let the kernel end other processes before this one: a guest depends on it.  Only root can.

    It is what libvirt's virtlogd(8) has in its unit, for that reason.  proc_pid_oom_score_adj(5)
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (state T or t in proc_pid_stat(5))."""
    try:
        return _stat(pid)[0] in "Tt"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: those before may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same pid."""

    pid: int
    start_ticks: int  # proc_pid_stat(5), field 22: clock ticks after boot
    boot_id: str  # of that boot: a host starts the same programs at the same ticks each time

    @classmethod
    def of_pid(cls, pid: int) -> Process:
        """The process that has this pid now.  Raises OSError for none."""
        return cls(pid, int(_stat(pid)[22 - 3]), boot_id())

    def runs(self) -> bool:
        """Whether it has not ended."""
        with self.opened() as descriptor:
            return descriptor is not None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended gets none."""
        with self.opened() as descriptor, contextlib.suppress(ProcessLookupError):
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)

    def kill(self, patience_s: float) -> bool:
        """Kill it, and wait so long; whether it has ended.  Blocks."""
        with self.opened() as descriptor:
            if descriptor is None:
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return _is_readable(descriptor, patience_s)

    def ends_within(self, patience_s: float, unless: int) -> bool:
        """Wait so long for its end, or until the descriptor `unless` is readable; whether it has ended.  Blocks."""
        with self.opened() as descriptor:
            return descriptor is None or _is_readable(descriptor, patience_s, unless)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """Its pidfd_open(2), which becomes readable when it ends; None if it has ended."""
        descriptor = _descriptor_of(self.pid)
        if descriptor is None:
            yield None
            return
        try:
            yield None if self._has_ended(descriptor) else descriptor
        finally:
            os.close(descriptor)

    def _has_ended(self, descriptor: int) -> bool:
        try:
            if Process.of_pid(self.pid) != self:
                return True
        except OSError:
            return True
        return _is_readable(descriptor, 0)


def _is_readable(descriptor: int, patience_s: float, *others: int) -> bool:
    """Whether it is, as soon as it or one of the others is, or after that time."""
    poll = select.poll()  # and not select(2), which takes low numbers only
    for each in (descriptor, *others):
        poll.register(each, select.POLLIN)
    return any(ready == descriptor for ready, _ in poll.poll(patience_s * 1000))


def _descriptor_of(pid: int) -> int | None:
    """None if no process has that pid, but a thread perhaps (EINVAL, since Linux 6.15 ENOENT), or none ever can."""
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
