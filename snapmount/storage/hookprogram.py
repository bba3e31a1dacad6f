"""Runs a hook: an executable of the administrator's, in a process group of its own, until a deadline.

It gets a question and gives an answer, which hookdocument.py defines; what it writes to its standard error is logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ..core import names
from ..host import blocking, trust
from ..host.processes import KILLED_S, Process

log = logging.getLogger(__name__)

ANSWER_MAX_BYTES = 1 << 20
LOOKED_AT_S = 5.0  # for the file itself, which may lie on a server that does not answer

# Nothing of the caller's, whose PATH or PYTHONPATH could have another program run.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
# In the environment of one that takes a snapshot: by which it is found if it outlives us.
TAKES = "SNAPMOUNT_TAKES"

_LINE_MAX_BYTES = 1000
_LINES_LOGGED_MAX = 1000
_LAST_LINES = 10
_PIPE_MAX_BYTES = 1 << 20  # fs.pipe-max-size of proc_sys_fs(5), by default
_READ_BYTES = 1 << 16

_left_behind: list[trio.Process] = []  # killed, but in D state; Popen warns of a process that it is to forget


class HookError(Exception):
    """Why the hook could not be run, or has given no answer, in words that follow its name and the verb."""

    def __init__(self, why: str, said: tuple[str, ...] = (), remedy: str | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.said = said  # the last lines of its standard error; () if the reason tells all of it
        self.remedy = remedy


async def run(
    hook: str,
    verb: str,
    question: bytes,
    deadline_s: float,
    most_bytes: int = ANSWER_MAX_BYTES,
    takes: str | None = None,
) -> bytes:
    """What the hook answers.  Raises HookError, also at the deadline; then its process group has been killed, as it
    has when this is cancelled.  `takes` is the snapshot that it takes, for end_left().
    """
    await _check(hook)
    environment = ENVIRONMENT | ({TAKES: takes} if takes else {})
    try:
        process = await trio.lowlevel.open_process(
            [hook, verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:  # a missing interpreter is told as a missing file too
        raise HookError(f"cannot be run: {error.strerror}") from error
    call = _Call(f"{hook} {verb}", process, most_bytes)
    try:
        with trio.move_on_after(deadline_s) as scope:
            await call.converse(question)
    finally:
        await _end(process)
    if scope.cancelled_caught:
        raise call.failed(f"has not ended within {deadline_s:g} s, and is killed")
    return call.answer()


async def _check(hook: str) -> None:
    """A hook is run as root, so nobody else may have made it."""
    path = Path(hook)
    if not path.is_absolute():
        raise HookError("is no absolute path")
    try:
        doubt = await blocking.call(LOOKED_AT_S, trust.doubt, path)
    except trio.TooSlowError:
        raise HookError(f"its file system did not answer within {LOOKED_AT_S:g} s") from None
    except OSError as error:
        raise HookError(f"cannot be run: {error.strerror}") from error
    if doubt:
        raise HookError(f"is not run, since it {doubt.why}", remedy=doubt.remedy)
    if not os.access(path, os.X_OK):
        raise HookError("is not executable", remedy=names.command("sudo", "chmod", "+x", hook))


@dataclass
class _Lines:
    """What a hook writes to its standard error, by lines."""

    logged_as: str
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    _begun: bytes = b""
    _number: int = 0

    def add(self, data: bytes) -> None:
        """More of it; a line without an end is one as soon as it is long."""
        *whole, self._begun = (self._begun + data).split(b"\n")
        for line in whole:
            self._add_line(line)
        if len(self._begun) > _LINE_MAX_BYTES:
            self.end()

    def end(self) -> None:
        """No more comes of the line that has begun."""
        self._add_line(self._begun)
        self._begun = b""

    def _add_line(self, line: bytes) -> None:
        text = names.printable(line[:_LINE_MAX_BYTES].decode(errors="replace").rstrip())
        if not text:
            return
        self.last.append(text)
        self._number += 1
        if self._number <= _LINES_LOGGED_MAX:
            log.info("%s: %s", self.logged_as, text)
        elif self._number == _LINES_LOGGED_MAX + 1:
            log.warning("%s says more than %d lines; the others are not logged", self.logged_as, _LINES_LOGGED_MAX)


class _Call:
    """A hook that runs."""

    def __init__(self, name: str, process: trio.Process, most_bytes: int) -> None:
        self._process = process
        self._most_bytes = most_bytes
        self._answer = bytearray()
        self._lines = _Lines(name)

    async def converse(self, question: bytes) -> None:
        """Ask, and take in what it says until it ends: not until nobody has its pipes open any more, since what it
        leaves running, such as the server of a device, may have them.
        """
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        outputs = ((self._process.stdout, self._add_answer), (self._process.stderr, self._lines.add))
        async with self._process.stdin, self._process.stdout, self._process.stderr:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_ask, self._process.stdin, question)
                    for stream, add in outputs:
                        nursery.start_soon(_take_in, stream, add)
                    await self._process.wait()
                    nursery.cancel_scope.cancel()
            finally:
                for stream, add in outputs:
                    _take_in_rest(stream, add)
                self._lines.end()

    def _add_answer(self, data: bytes) -> None:
        self._answer += data[: self._most_bytes + 1 - len(self._answer)]
        if len(self._answer) > self._most_bytes:
            _kill_group(self._process)

    def answer(self) -> bytes:
        """Its answer, once it has ended.  Raises HookError."""
        if len(self._answer) > self._most_bytes:
            raise self.failed(f"has answered more than {self._most_bytes} bytes")
        status = self._process.returncode
        if status:
            how = f"exit status {status}" if status > 0 else signal.strsignal(-status) or f"signal {-status}"
            raise self.failed(f"has failed ({how})")
        return bytes(self._answer)

    def failed(self, why: str) -> HookError:
        """The error for that, with what the hook has said last."""
        said = tuple(self._lines.last)
        return HookError(": ".join((why, *said[-1:])), said if len(said) > 1 else ())


async def _ask(stream: trio.abc.SendStream, question: bytes) -> None:
    try:
        await stream.send_all(question)
    except trio.BrokenResourceError:
        log.debug("the hook does not read its question")
    await stream.aclose()


async def _take_in(stream: trio.abc.ReceiveStream, add: Callable[[bytes], None]) -> None:
    async for data in stream:
        add(bytes(data))


def _take_in_rest(stream: trio.abc.ReceiveStream, add: Callable[[bytes], None]) -> None:
    """What has been written and not read yet: no more than a pipe holds (pipe(7)), whoever still writes."""
    assert isinstance(stream, trio.lowlevel.FdStream)
    for _ in range(_PIPE_MAX_BYTES // _READ_BYTES):
        try:
            data = os.read(stream.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            return
        add(data)


# -- its end -----------------------------------------------------------------------------------------------------------


def _kill_group(process: trio.Process) -> None:
    """Nothing of a process that has ended: its number may be another's."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _end(process: trio.Process) -> None:
    """Kill it, with those that it has started, if it has not ended; wait for its death no longer than a moment."""
    if process.returncode is not None:
        return
    _kill_group(process)
    with trio.move_on_after(KILLED_S, shield=True) as scope:
        await process.wait()
    if scope.cancelled_caught:
        log.error("the hook's process %d hangs in the kernel and is left behind", process.pid)
        _left_behind.append(process)


def end_left(takes: str) -> bool:
    """Kill what still takes that snapshot, though what has started it was killed: else it might come to life once it
    has been removed.  Whether all of it has ended.  Blocks, for KILLED_S at most.
    """
    mark = os.fsencode(f"{TAKES}={takes}")
    while marked := list(_marked(mark)):  # again, for what they have started meanwhile
        if not all(process.kill(KILLED_S) for process in marked):
            return False
    return True


def _marked(mark: bytes) -> Iterator[Process]:
    """The processes with this in their environment, as far as we may look (proc_pid_environ(5))."""
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            process = Process.of_pid(int(name))  # before its environment: of a later one with its number, kill() knows
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                yield process
