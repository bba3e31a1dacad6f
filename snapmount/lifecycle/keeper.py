"""Keeps watch of a VM's checkpoints, as a process of its own, for as long as there are any that cost the guest
something: python -m snapmount.lifecycle.keeper UUID.

While no snapshot of the VM is there, nobody else would see that its guest is about to find no space for their sake.  It
tells syslog(3) which ones it has given up.
"""

from __future__ import annotations

import logging
import os
import sys
import syslog
from functools import partial

import trio

from ..core import names
from ..core.checkpoint import Checkpoint
from ..errors import SnapmountError, first_cause
from ..host import processes, titles
from ..host.logs import Problems
from ..records import checkpoints as records
from ..sources import registry
from . import checkpoints, keeping

log = logging.getLogger(__name__)

COMM = "snapmount-keep"
AGAIN_S = 3.0
OTHERS_S, POLL_S = 1.0, 0.1


class _Syslog(logging.Handler):
    """Hands log messages on to syslog(3)."""

    def emit(self, record: logging.LogRecord) -> None:
        level = syslog.LOG_WARNING if record.levelno >= logging.WARNING else syslog.LOG_INFO
        syslog.syslog(level | syslog.LOG_DAEMON, names.printable(record.getMessage()))


async def keep(vm_uuid: str) -> None:
    """Watch them until there are none, unless somebody does."""
    problems = Problems(log, "the checkpoints of this VM cannot be watched: %s", logging.ERROR)
    while True:
        try:
            if not await keeping.costly(vm_uuid):
                return
            lock = await _locked(vm_uuid)
            if lock is None:
                return
            try:
                await _keep(vm_uuid)
                if not await records.on_disk(records.are_any, vm_uuid):
                    return  # the lock goes with the process: who waits for its end sees that
                os.close(lock)  # and look again: what was made by now has found us watching
            except BaseException:
                os.close(lock)
                raise
        except SnapmountError as error:
            problems.met(error.message)
            await trio.sleep(AGAIN_S)


async def _locked(vm_uuid: str) -> int | None:
    """The lock; None if somebody else keeps it: who only looks whether anybody has it has it for a moment too."""
    with trio.move_on_after(OTHERS_S):
        while (lock := await records.on_disk(records.locked, vm_uuid)) is None:
            await trio.sleep(POLL_S)
        return lock
    return None


async def _keep(vm_uuid: str) -> None:
    found = await keeping.costly(vm_uuid)
    if found:
        titles.show(f"snapmount: keeper of the checkpoints of {found[0].vm_name}", COMM)
    try:
        async with trio.open_nursery() as nursery:
            for kind in {each.source["kind"] for each in found}:
                nursery.start_soon(registry.SOURCES[kind].keep, partial(_current, vm_uuid, kind), _discard)
    except BaseExceptionGroup as group:
        raise first_cause(group) from None


async def _current(vm_uuid: str, kind: str) -> list[Checkpoint]:
    return [each for each in await keeping.costly(vm_uuid) if each.source["kind"] == kind]


async def _discard(checkpoint: Checkpoint, why: str) -> None:
    """Raises SnapmountError."""
    log.warning("checkpoint %s of %s is given up: %s", checkpoint.name, checkpoint.vm_name, why)
    await checkpoints.discard(checkpoint)


def _main(vm_uuid: str) -> None:
    os.umask(0o077)
    processes.protect_from_oom_killer()
    syslog.openlog("snapmount", syslog.LOG_PID, syslog.LOG_DAEMON)
    logging.basicConfig(handlers=[_Syslog()], level=logging.INFO, force=True)
    try:
        trio.run(keep, vm_uuid)
    except BaseException:
        log.exception("internal error")
    finally:
        os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1])
