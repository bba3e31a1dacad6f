"""Stands by a snapshot's server, as a process of its own: when the server has gone and left its snapshot, somebody must
see to it that the guest does not suffer.

A snapshot that was readable stays dead until it is recovered or expires, and is given up before the guest finds no
space for its sake.  One that cannot be re-attached is undone: its guest may be frozen or paused, or a job run on for
ever.  The standby is forked from the server before that makes anything, sleeps as long as the server lives, and ends
with the snapshot (teardown.py), or as soon as the view is ready of a server in the foreground (foreground.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import trio

from ..core.lifecycle import State
from ..errors import SnapmountError
from ..host import endings, logs, processes, signals, titles
from ..host.logs import Problems
from ..host.processes import Process
from ..records.record import Record
from ..records.store import Lease, Store
from ..sources import registry
from . import checkpoints
from .guard import clear, lose
from .teardown import tear_down

log = logging.getLogger(__name__)

AGAIN_S = 3.0
DELETE_S = 10.0  # for a `delete`, which has much to load when the server has not undone the snapshot, on a busy host
COMM = "snapmount-stby"
RELEASE_S = 20.0
LOOK_AGAIN_S = 1.0  # whether it is in other hands
LOOK_S = 0.2  # for the record, which the server is about to write


@contextlib.contextmanager
def standing_by(store: Store) -> Iterator[Process]:
    """A standby for this process, which must have one thread only; if a snapshot whose record names it is left at the
    end of the block, or when the process is killed, it watches over that.
    """
    server = Process.of_pid(os.getpid())
    pid = os.fork()
    if pid == 0:
        _run(server, store)
    standby = Process.of_pid(pid)
    try:
        yield standby
    finally:
        left = left_by(server, store)
        if left is None or left.standby != standby:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _run(server: Process, store: Store) -> NoReturn:
    """The standby's life."""
    try:
        os.setsid()  # Ctrl-C is for a server in the foreground
        signals.let_end()
        processes.close_inherited()
        with Path(os.devnull).open("r+b") as null:
            logs.replace_standard_streams(null.fileno())
        titles.show(f"snapmount: standby of process {server.pid}", COMM)
        trio.run(_stand_by, server, store)
    except BaseException:
        log.exception("internal error")
    finally:
        os._exit(0)


def left_by(server: Process, store: Store) -> Record | None:
    """The snapshot that the server has begun, or taken over, and not ended."""
    return next((record for record in store.load_all()[0] if record.server == server), None)


def is_done_with(record: Record) -> bool:
    """Whether nobody reads it any more: it was never readable, is lost, given up or being undone, or has expired."""
    return record.state is not State.ACTIVE or record.has_expired


async def _show_whose(server: Process, store: Store) -> None:
    """Let ps(1) show what this process stands by, once the server has written that down."""
    with contextlib.suppress(SnapmountError, OSError):  # it stands by all the same
        while (record := left_by(server, store)) is None:
            await trio.sleep(LOOK_S)
        titles.show(f"snapmount: standby of {record.snapshot.vm_name} ({record.id})", COMM)


async def _stand_by(server: Process, store: Store) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show_whose, server, store)
        await endings.wait(server)
        nursery.cancel_scope.cancel()
    record = left_by(server, store)
    if record is None:
        return
    logs.replace_standard_streams(store.open_log(record.id))
    logs.log_to(sys.stderr, logging.INFO, logs.FORMAT)
    log.warning("process %d, the server, has gone, and has left snapshot %s: minding it", server.pid, record.id)
    problems = Problems(log, "this cannot be done yet: %s", logging.ERROR)
    if record.state is State.LEFTOVER:
        await trio.sleep(DELETE_S)  # one that waits goes first
    while left := _left(record, store):
        began = trio.current_time()
        try:
            if not is_done_with(left):
                await _mind(left, store)
            elif await _end(store, left):
                return
        except SnapmountError as error:
            problems.met(error.message)
            logging.getLogger().setLevel(logging.ERROR)  # the same steps again and again are not worth telling
        if is_done_with(left):
            await trio.sleep(max(AGAIN_S, trio.current_time() - began))  # others that wait for the lock get it between
    log.info("it is in other hands, or has ended")


async def _mind(record: Record, store: Store) -> None:
    """Return when the snapshot has expired, is in other hands, or has been given up, when all is done that can be.

    One that is lost stays as it is, and costs the guest nothing any more: whoever recovers it finds out why, and is not
    kept waiting for its lock.
    """
    source = registry.of(record)
    async with source.watched(record, store) as watch:
        while (wait_s := _wait_s(record, store)) > 0:
            with trio.move_on_after(wait_s):
                loss = await watch.wait_lost()
                break
        else:
            return
        if loss.state is State.GAVE_UP:
            with _taken_over(store, record) as lease, trio.move_on_after(RELEASE_S):
                if lease:
                    await lose(lease, watch, loss)
                else:
                    await trio.sleep(LOOK_AGAIN_S)
            return
    await source.release(record.kept)
    while (wait_s := _wait_s(record, store)) > 0:
        await trio.sleep(wait_s)


def _wait_s(record: Record, store: Store) -> float:
    """When to look again; 0 if the snapshot is in other hands, or nobody needs it any more."""
    left = _left(record, store)
    if left is None or is_done_with(left):
        return 0
    return min(LOOK_AGAIN_S, math.inf if left.left_s is None else left.left_s)


def _left(record: Record, store: Store) -> Record | None:
    """The record as it is now; None if somebody else has become the snapshot's server, or it has ended."""
    now = store.load(record.id)
    return now if now and now.server == record.server else None


@contextlib.contextmanager
def _taken_over(store: Store, record: Record) -> Iterator[Lease | None]:
    """Hold the snapshot; None if somebody else does, who recovers or ends it, or has done so."""
    with store.taken_over(record.id) as lease:
        yield lease if lease and lease.record.server == record.server else None


async def _end(store: Store, record: Record) -> bool:
    """Undo the snapshot, or what costs the guest alone, if somebody may still want to know of it; whether that is done.

    Raises SnapmountError.
    """
    with _taken_over(store, record) as lease:
        if lease is None:
            return False
        if not lease.record.state.was_readable or lease.record.has_expired:
            await tear_down(lease)
            return True
        if lease.record.reason:  # then no checkpoint keeps anything, which costs the guest too
            await checkpoints.settle(lease.record)
        await registry.of(record).release(lease.record.kept)
        if lease.record.state is State.GAVE_UP:
            await clear(lease)
    return True
