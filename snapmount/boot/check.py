"""Tells whether the guest of a scratch VM has booted: by its agent, by what it writes to its console, or by time."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

import trio

from .. import hypervisor
from ..core import names, units
from ..errors import NotBootedError, UnreachableError, UsageError
from ..host import blocking, descriptors, endings
from .scratchvm import ScratchVm

WAIT_TIMEOUT_S = 300.0  # unless the user says otherwise
POLL_S = 0.1
LOOK_S = 10.0
SETTLE_S = 0.2  # for what virtlogd(8) has still to write
LAST_LINES = 6
LINE_MAX = 200  # characters
CONSOLE_BYTES = units.MIB  # of the end of the console's log that a pattern is looked for in
_LIKE_A_TIME = re.compile(r"[0-9.]+ ?([smhdw]|sec|seconds?|min|minutes?|hours?|days?)?")
EXAMPLE = "--wait-for agent, --wait-for 2m, or --wait-for 'login: $'"


@dataclass(frozen=True)
class WaitFor:
    """What tells that the guest has booted: one of these."""

    seconds: float | None = None  # it still runs after that time
    pattern: re.Pattern[bytes] | None = None  # it has written this to its console
    agent: bool = False  # its agent answers

    @classmethod
    def parse(cls, text: str) -> WaitFor:
        """'agent', a span of time such as '90s' or '2m', else a regular expression.  Raises UsageError, also for what
        would be there at once.
        """
        if not text.strip():
            raise UsageError("--wait-for is empty", EXAMPLE)
        if text == "agent":
            return cls(agent=True)
        try:
            return cls(seconds=units.parse_duration(text))
        except ValueError as error:
            if _LIKE_A_TIME.fullmatch(text):
                raise UsageError(f"--wait-for: {error}", EXAMPLE) from None
        try:
            pattern = re.compile(text.encode("utf-8", "surrogateescape"), re.MULTILINE)
        except re.error as error:
            raise UsageError(f"{text!r} is no regular expression: {error}") from None
        if pattern.search(b""):
            raise UsageError(f"{text!r} matches a console on which nothing has been written too", EXAMPLE)
        return cls(pattern=pattern)


@dataclass(frozen=True)
class Came:
    """That what was waited for has come."""

    wait_for: WaitFor
    after_s: float  # the scratch VM was started

    def __str__(self) -> str:
        after = units.duration(self.after_s)
        if self.wait_for.agent:
            return f"its guest agent has answered after {after}"
        if self.wait_for.pattern:
            return f"its console has shown {self.wait_for.pattern.pattern.decode(errors='replace')!r} after {after}"
        return f"it still runs after {after}"


async def wait(wait_for: WaitFor, timeout_s: float, vm: ScratchVm, uri: str) -> Came:
    """Return when what is waited for has come.  Raises NotBootedError, with the last lines of the console."""
    since_s = trio.current_time()
    problem = f"{vm.name} has ended before it was there"
    with contextlib.closing(Console(vm.console_log)) as console:
        async with trio.open_nursery() as nursery:

            async def come() -> None:
                nonlocal problem
                problem = await _come(wait_for, timeout_s, vm, uri, console)
                nursery.cancel_scope.cancel()

            nursery.start_soon(come)
            nursery.start_soon(console.follow)
            await endings.wait(vm.process)
            nursery.cancel_scope.cancel()
        if problem:
            await trio.sleep(SETTLE_S)
            await console.look()
            raise NotBootedError(problem, _remedy(vm), tuple(f"console: {line}" for line in console.last_lines()))
    return Came(wait_for, trio.current_time() - since_s)


def _remedy(vm: ScratchVm) -> str | None:
    if not vm.has_console:
        return None
    if vm.process.runs() or vm.is_kept:
        return names.command("less", vm.console_log)
    return "--keep, which keeps its overlays and the log of its console"


async def _come(wait_for: WaitFor, timeout_s: float, vm: ScratchVm, uri: str, console: Console) -> str:
    """Return when it has come, '' or that it has not."""
    if wait_for.seconds is not None:
        await trio.sleep(wait_for.seconds)
        why = await _why_paused(uri, vm.uuid)
        return why and f"{vm.name}: {why}"
    with trio.move_on_after(timeout_s):
        if wait_for.pattern:
            await console.shows(wait_for.pattern)
        else:
            await _agent_answers(uri, vm.uuid)
        return ""
    what = "its guest agent has not answered" if wait_for.agent else "its console has not shown what was waited for"
    how = await _why_paused(uri, vm.uuid) or "it still runs"
    return f"{vm.name}: {what} within {units.duration(timeout_s)}; {how}"


async def _agent_answers(uri: str, uuid: str) -> None:
    """Return when the guest agent answers; libvirt may be restarted meanwhile."""
    while True:
        with contextlib.suppress(UnreachableError):
            async with hypervisor.connected(uri) as connection:
                while domain := await connection.domain_by_uuid(uuid):
                    if await domain.agent.answers():
                        return
                    await trio.sleep(POLL_S)
        await trio.sleep(POLL_S)


async def _why_paused(uri: str, uuid: str) -> str:
    """That it is paused, and why; '' where it is not, or where nobody tells."""
    with contextlib.suppress(UnreachableError):
        async with hypervisor.connected(uri) as connection:
            domain = await connection.domain_by_uuid(uuid)
            return (domain and await domain.why_paused()) or ""
    return ""


class Console:
    """The end of what a VM has written to its console, by the log that virtlogd(8) keeps of it.

    Its file is held open, since it goes with the VM's overlays; and so is the one before it, which virtlogd has moved
    away when it had become too long.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: list[int] = []  # descriptors, the older one first
        self._seen: list[tuple[int, int]] = []  # inode number and length of each
        self.text = b""  # lines end with LF

    def close(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []

    async def follow(self) -> None:
        """Look at it from time to time."""
        while True:
            await self.look()
            await trio.sleep(POLL_S)

    async def shows(self, pattern: re.Pattern[bytes]) -> None:
        """Return when it shows this; somebody must follow it."""
        while not pattern.search(self.text):
            await trio.sleep(POLL_S)

    async def look(self) -> None:
        """Read what has been written by now; a file system that does not answer holds nobody up."""
        with contextlib.suppress(OSError, trio.TooSlowError):
            await blocking.call(LOOK_S, self.read)

    def last_lines(self) -> list[str]:
        """The last ones that hold anything, without the sequences that steer a terminal (ECMA-48)."""
        plain = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|[ -/]*[0-~])", "", self.text.decode("utf-8", "replace"))
        lines = [line.strip() for line in plain.split("\n")]
        return [line[:LINE_MAX] for line in lines if line][-LAST_LINES:]

    def read(self) -> None:
        """Read what has been written by now.  Blocks.  Raises OSError."""
        self._open()
        now = [(status.st_ino, status.st_size) for status in map(os.fstat, self._files)]
        if now != self._seen:
            written = b"".join(_end_of(file, size) for file, (_, size) in zip(self._files, now, strict=True))
            self.text = re.sub(rb"\r+\n", b"\n", written[-CONSOLE_BYTES:])
            self._seen = now

    def _open(self) -> None:
        """Open the file that is there now, unless it is open.  It lies in a directory of QEMU's user: no link is
        followed, and nothing but a file is read.
        """
        try:
            descriptor = descriptors.opened_file(self._path)
        except OSError:
            return  # not there yet, or no more
        status = os.fstat(descriptor)
        if any(os.path.samestat(status, os.fstat(each)) for each in self._files):
            os.close(descriptor)
            return
        for older in self._files[:-1]:
            os.close(older)
        self._files = [*self._files[-1:], descriptor]


def _end_of(descriptor: int, length: int) -> bytes:
    return os.pread(descriptor, CONSOLE_BYTES, max(0, length - CONSOLE_BYTES))
