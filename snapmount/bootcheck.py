"""Tells whether the guest of a scratch VM has booted: by its agent, by what it writes to its console, or by time."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import trio

from . import hypervisor
from .core import units
from .errors import NotBootedError, UnreachableError, UsageError
from .scratchvm import ScratchVm

POLL_S = 0.1
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


async def wait(wait_for: WaitFor, timeout_s: float, vm: ScratchVm, uri: str) -> None:
    """Return when what is waited for has come.  Raises NotBootedError."""
    problem = f"{vm.name} has ended before it was there"
    async with trio.open_nursery() as nursery:

        async def come() -> None:
            nonlocal problem
            problem = await _come(wait_for, timeout_s, vm, uri)
            nursery.cancel_scope.cancel()

        nursery.start_soon(come)
        await vm.process.wait_gone()
        nursery.cancel_scope.cancel()
    if problem:
        raise NotBootedError(problem, f"less {vm.console_log}" if vm.process.runs() else None)


async def _come(wait_for: WaitFor, timeout_s: float, vm: ScratchVm, uri: str) -> str:
    """Return when it has come, '' or that it has not."""
    if wait_for.seconds is not None:
        await trio.sleep(wait_for.seconds)
        return ""
    with trio.move_on_after(timeout_s):
        if wait_for.pattern:
            await _shown(wait_for.pattern, vm.console_log)
        else:
            await _agent_answers(uri, vm.uuid)
        return ""
    what = "its guest agent has not answered" if wait_for.agent else "its console has not shown what was waited for"
    return f"{vm.name}: {what} within {units.duration(timeout_s)}; it still runs"


async def _shown(pattern: re.Pattern[bytes], path: str) -> None:
    """Return when the console has shown it."""
    while not pattern.search(await trio.to_thread.run_sync(end_of, path)):
        await trio.sleep(POLL_S)


async def _agent_answers(uri: str, uuid: str) -> None:
    """Return when the guest agent answers; libvirt may be restarted meanwhile."""
    while True:
        with contextlib.suppress(UnreachableError):
            async with hypervisor.connected(uri) as connection:
                while domain := await connection.domain_by_uuid(uuid):
                    if await domain.agent_answers():
                        return
                    await trio.sleep(POLL_S)
        await trio.sleep(POLL_S)


def end_of(path: str) -> bytes:
    """The end of the console's log, with what virtlogd(8) has moved away before it; lines end with LF."""
    written = b""
    for part in (f"{path}.0", path):
        try:
            written += Path(part).read_bytes()[-CONSOLE_BYTES:]
        except OSError:
            pass
    return re.sub(rb"\r+\n", b"\n", written[-CONSOLE_BYTES:])
