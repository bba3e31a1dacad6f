"""Stands by a snapshot's server, as a process of its own: when the server has been killed, somebody must give the
snapshot up before its scratch space runs out, which would stop the guest.

It does no more than that: the snapshot stays dead until it is recovered.  It is forked from the server before that
makes anything, sleeps as long as the server lives, and ends with the backup job (teardown.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import trio

from . import hypervisor, logs, processes, watching
from .core import space
from .core.space import Fill
from .errors import SnapmountError, SpaceError, UnreachableError
from .processes import Process
from .records import Record, State
from .scratch.measuring import Gauge
from .sources import pull
from .state import Store

log = logging.getLogger(__name__)

COMM = "snapmount-stby"  # what ps -o comm shows: 15 characters at most (PR_SET_NAME)


@contextlib.contextmanager
def standing_by(store: Store) -> Iterator[Process]:
    """A standby for this process, which must have one thread only; where a snapshot of this process is left at the end
    of the block, or when the process is killed, it watches over that.
    """
    server = Process.of_pid(os.getpid())
    pid = os.fork()
    if pid == 0:
        _run(server, store)
    try:
        yield Process.of_pid(pid)
    finally:
        if _left_by(server, store) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _run(server: Process, store: Store) -> NoReturn:
    """The standby's life."""
    try:
        processes.close_inherited()
        with Path(os.devnull).open("r+b") as null:
            logs.replace_standard_streams(null.fileno())
        Path("/proc/self/comm").write_text(COMM)
        trio.run(_stand_by, server, store)
    except BaseException:
        log.exception("internal error")
    finally:
        sys.stderr.flush()
        os._exit(0)


def _left_by(server: Process, store: Store) -> Record | None:
    """The snapshot that the server has begun, or taken over, and not ended."""
    return next((record for record in store.load_all()[0] if record.server == server), None)


async def _stand_by(server: Process, store: Store) -> None:
    await server.wait_gone()
    record = _left_by(server, store)
    if record is None:
        return
    logs.replace_standard_streams(logs.open_log(store, record))
    logs.log_to(sys.stderr, logging.INFO, logs.FORMAT)
    log.warning("process %d, the server, has gone: watching the scratch space in its place", server.pid)
    gauge = Gauge(record)
    problem = ""
    while _is_left(record, store):
        wait_s = space.LONGEST_WAIT_S
        try:
            fill = await _read(gauge, record)
            if fill.is_short and await _give_up(store, record, fill):
                return
            wait_s = fill.wait_s
        except SpaceError as error:
            if error.message != problem:
                problem = error.message
                log.warning("the scratch space cannot be watched: %s", problem)
        await trio.sleep(wait_s)
    log.info("it is in other hands, or has ended")


def _is_left(record: Record, store: Store) -> bool:
    """Whether nobody else has become the snapshot's server; what is lost has no job any more."""
    now = store.load(record.id)
    return now is not None and now.server == record.server and now.state is not State.LOST


async def _read(gauge: Gauge, record: Record) -> Fill:
    """Raises SpaceError."""
    if gauge.unseen:
        with contextlib.suppress(UnreachableError):
            async with hypervisor.connected(record.connect) as connection:
                return await gauge.read(await connection.domain_by_uuid(record.snapshot.vm_uuid))
    return await gauge.read(None)


async def _give_up(store: Store, record: Record, fill: Fill) -> bool:
    """End the job and remove the scratch files; whether that has been done.  Where somebody holds the snapshot, who
    recovers or ends it, that is theirs.
    """
    with store.taken_over(record.id) as claim:
        if claim is None:
            return False
        reason = fill.why_give_up(datetime.now(UTC))
        log.error("the snapshot is given up: %s", reason)
        if claim.record.state in (State.STARTING, State.ACTIVE):
            claim.note(State.GAVE_UP, reason)
        try:
            await pull.end(claim.record)
        except SnapmountError as error:
            log.warning("the backup job cannot be ended yet: %s", error.message)
            return False
        await watching.clear(claim)
    return True
