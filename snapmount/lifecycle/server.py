"""Runs a session in the background: a process of its own that tells, over a socket, how it goes until the view is
ready.

The messages are JSON, one a line, each a Message.  If the foreground process goes away before the view is ready, or is
to, the session sees its side of the socket close and undoes everything.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import trio

from ..core import names
from ..core.document import from_document, to_document
from ..errors import InterruptedByUserError, SnapmountError, of_exit_code
from ..host import interruptible, logs, processes, signals
from ..host.processes import Process
from ..records.record import Record
from ..records.store import Store
from . import deletion, session, standby

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A SnapmountError, as a message has it."""

    message: str
    remedy: str | None
    evidence: tuple[str, ...]
    exit_code: int  # each kind of error has one of its own

    @classmethod
    def of(cls, error: SnapmountError) -> Failure:
        return cls(error.message, error.remedy, tuple(error.evidence), error.exit_code)

    def error(self) -> SnapmountError:
        """The error of the same kind."""
        found = of_exit_code(self.exit_code)(self.message, self.remedy)
        found.evidence = self.evidence
        return found


@dataclass(frozen=True)
class Message:
    """One of these."""

    tell: str | None = None  # how it goes
    ready: str | None = None  # the id of the snapshot whose view is readable
    error: Failure | None = None  # it has come to nothing


class SocketReporter:
    """Tells the foreground process, and moves to the log when there is one."""

    def __init__(self, sock: socket.socket, store: Store, verbose: bool) -> None:
        self._sock = sock
        self._store = store
        self._verbose = verbose
        self._is_ready = False
        self.standby: Process | None = None

    def warn(self, text: str) -> None:
        self._tell(f"warning: {text}")

    def recorded(self, record: Record) -> None:
        """Let everything that is printed or logged go to the snapshot's log, and with -v to the user too."""
        session.show_as_server(record)
        log_file = self._store.open_log(record.id)
        logs.replace_standard_streams(log_file)
        os.close(log_file)
        level = logging.DEBUG if self._verbose else logging.INFO
        logs.log_to(sys.stderr, level, logs.FORMAT)
        logging.getLogger("pyfuse3").setLevel(logging.INFO)  # its debug output is a line for each request
        self.log_to_user()

    def ready(self, record: Record) -> None:
        self._send(Message(ready=record.id))
        self._is_ready = True
        self._sock.shutdown(socket.SHUT_WR)

    def ending(self) -> None:
        pass

    def failed(self, error: SnapmountError) -> None:
        """The session has ended with that error."""
        if self._is_ready:
            log.error("%s", error.message)
        else:
            self._send(Message(error=Failure.of(error)))

    async def wait_abandoned(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)
        if self._is_ready:
            await trio.sleep_forever()

    def log_to_user(self) -> None:
        """With -v, tell the user what is logged until the view is ready."""
        if self._verbose and not self._is_ready:
            logging.getLogger().addHandler(_Forwarder(self._tell))

    def _tell(self, text: str) -> None:
        if not self._is_ready:
            self._send(Message(tell=text))

    def _send(self, message: Message) -> None:
        try:
            self._sock.sendall(json.dumps(to_document(message)).encode() + b"\n")
        except OSError:
            pass  # nobody listens any more: wait_abandoned() tells


class _Forwarder(logging.Handler):
    """Hands log messages on."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


@dataclass(frozen=True)
class Started:
    """A snapshot whose view is readable."""

    id: str
    is_unwanted: bool  # a signal has asked for the command's end, too late for the server, and is noted still


def start(begin: session.Begin, store: Store, verbose: bool, tell: Callable[[str], None]) -> Started:
    """Leave a process behind that gets hold of a snapshot and serves it; return when the view is readable.

    Warnings, and with `verbose` what is being done, are handed to `tell`.

    SIGINT, SIGTERM or SIGHUP to the caller before that undo it all.  Raises SnapmountError as session.run() does, and
    ServerDiedError.
    """
    signals.note()
    ours, theirs = socket.socketpair()
    # Signals that come before both sides are ready for them must wait.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    if signals.take_noted():
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise InterruptedByUserError(session.INTERRUPTED)
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _serve(begin, store, theirs, verbose)
    theirs.close()
    server = Process.of_pid(pid)
    try:
        with _signals_passed_on(ours):
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            snapshot_id = _wait_ready(ours, server, tell)
    except ServerDiedError as death:
        was_interrupted = signals.take_noted()
        _undo_what_is_left(death, server, store)
        if was_interrupted:
            raise InterruptedByUserError(session.INTERRUPTED) from None
        raise
    return Started(snapshot_id, is_unwanted=signals.have_come())


@contextlib.contextmanager
def _signals_passed_on(sock: socket.socket) -> Iterator[None]:
    """Let the server know of what would end this process, as if that had gone: where its view is not ready, it undoes
    and tells.
    """

    def pass_on() -> None:
        with contextlib.suppress(OSError):  # the server has gone
            sock.shutdown(socket.SHUT_WR)

    signals.note(pass_on)
    try:
        yield
    finally:
        signals.note()


class ServerDiedError(SnapmountError):
    """The server has ended without a word.  What it had begun to make is undone; a snapshot that it was about to take
    over is as it was.
    """

    def __init__(self, how: str) -> None:
        self.what = f"the server process has died before the view was ready: {how}"
        super().__init__(f"{self.what}; nothing was left behind")


def _undo_what_is_left(death: ServerDiedError, server: Process, store: Store) -> None:
    """Undo it, unless its standby does; whoever comes first.  Raises SnapmountError if something is left."""
    record = standby.left_by(server, store)
    if record is None:
        return
    if record.state.was_readable:
        raise SnapmountError(
            f"{death.what}; snapshot {record.id} is there", names.command("snapmount", "recover", record.id)
        ) from None
    interruptible.finish(deletion.end, store, record, True)


def _wait_ready(sock: socket.socket, server: Process, tell: Callable[[str], None]) -> str:
    for message in _messages(sock):
        if message.tell is not None:
            tell(message.tell)
        elif message.ready is not None:
            return message.ready
        elif message.error is not None:
            os.waitpid(server.pid, 0)
            raise message.error.error()
    _, status = os.waitpid(server.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    raise ServerDiedError(f"signal {-code}" if code < 0 else f"exit status {code}")


def _messages(sock: socket.socket) -> Iterator[Message]:
    with sock.makefile("rb") as lines:
        for line in lines:
            yield from_document(Message, json.loads(line))


def _serve(begin: session.Begin, store: Store, sock: socket.socket, verbose: bool) -> NoReturn:
    """The server process."""
    processes.close_inherited(keep=sock.fileno())
    os.chdir("/")
    os.umask(0o077)
    processes.protect_from_oom_killer()
    reporter = SocketReporter(sock, store, verbose)
    status = 0
    logging.basicConfig(handlers=[logging.NullHandler()], level=logging.INFO, force=True)
    reporter.log_to_user()
    try:
        with standby.standing_by(store) as reporter.standby:
            trio.run(session.run, begin, reporter)
    except SnapmountError as error:
        status = error.exit_code
        reporter.failed(error)
    except BaseException as error:
        status = 1
        log.exception("internal error")
        reporter.failed(SnapmountError(f"internal error, please report it: {error!r}"))
    finally:
        os._exit(status)
