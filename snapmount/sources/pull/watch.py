"""Watches a backup job: its export, and its scratch space, so that the snapshot is given up before the guest suffers.

libvirt tells when a scratch file has grown to a length of our choice, and when a read or write of the guest has failed.
As a net we look at files and file system too, the more often the less room there is: other programs use that space as
well, and libvirtd may be down.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import trio

from ... import hypervisor
from ...core import filling
from ...core.lifecycle import State
from ...errors import NotFoundError, SpaceError, UnreachableError
from ...host import blocking
from ...host.logs import Problems
from ...hypervisor import DiskError, directories
from ...images import nbd
from ...records.record import Record
from ...records.store import Store
from ..losswatch import LossWatch
from ..source import Loss
from . import job, space, state
from .figures import Figures
from .scratch import files
from .scratch.measuring import Gauge
from .space import Usage

log = logging.getLogger(__name__)

RETRY_S = 0.2
OWN_DISKS_S = 3.0
RESUME_AGAIN_S = 10.0
TRY_AGAIN_S = 1.0
TELL_S = 1.0
MORE_SPACE = "a --scratch-dir with more space, or a higher --scratch-limit"


@contextlib.asynccontextmanager
async def watched(record: Record, store: Store) -> AsyncIterator[JobWatch]:
    """See Source: watch over a snapshot whose job runs."""
    watch = JobWatch(record, store)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            yield watch
            nursery.cancel_scope.cancel()
    finally:
        watch.close()


class JobWatch(LossWatch):
    """The watch over one snapshot (a Watch, see source.py)."""

    def __init__(self, record: Record, store: Store) -> None:
        super().__init__()
        self._record = record
        self._store = store
        self._has_ended = trio.Event()  # the job
        self._subscription: hypervisor.Subscription | None = None
        self._gauge = Gauge(record)
        self._armed: dict[str, int] = {}  # disk: the length that libvirt will tell of
        self._room: int | None = None
        self._look_now = trio.Event()  # look now
        self._arm = trio.Event()  # thresholds are due
        self._may_have_stopped = False
        self._has_io_error = trio.Event()
        self._last_error: DiskError | None = None  # that was heard of
        self._resumed_s = -math.inf
        self._told_s = -TELL_S

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch, until the snapshot is lost; it starts with a first look at the scratch space.  Where the job must be
        ended in haste, the connection to libvirt is kept until it has.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._try_scratch)
            nursery.start_soon(self._wait_export_gone)
            await self._wait_short(task_status.started)
            if self._loss and self._loss.state is State.GAVE_UP:
                await self._has_ended.wait()
            nursery.cancel_scope.cancel()

    def _lose(self, loss: Loss) -> None:
        super()._lose(loss)
        self._look_now.set()

    async def _wait_export_gone(self) -> None:
        await nbd.wait_until_gone(state.of(self._record).socket, self._record.snapshot.disks[0].name)
        self._lose(Loss(State.LOST, job.LOST_CONNECTION))

    def close(self) -> None:
        """Let go of the scratch files: their space is free only then."""
        self._gauge.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    async def _wait_short(self, started: Callable[[], None]) -> None:
        """Look again and again, until there is too little."""
        problems = Problems(log, "the scratch space cannot be watched: %s")
        has_started = False
        while not self._is_lost.is_set():
            self._look_now = trio.Event()
            wait_s = filling.LONGEST_WAIT_S
            try:
                usage = await self._look()
            except SpaceError as error:
                problems.met(error.message)
            else:
                if usage.is_short:
                    self._lose(Loss(State.GAVE_UP, usage.why_give_up(datetime.now(UTC)), MORE_SPACE))
                self._tell(usage)
                self._wish_thresholds(usage)
                wait_s = usage.wait_s
            if not has_started:
                has_started = True
                started()
            if not self._is_lost.is_set():
                with trio.move_on_after(wait_s):
                    await self._look_now.wait()

    async def _look(self) -> Usage:
        domain = self._subscription.domain if self._subscription else None
        error = None
        if self._may_have_stopped and domain:
            self._may_have_stopped = False
            error = await self._stopped_by(domain)
        try:
            usage = await self._gauge.read(domain, is_guest_stopped=error is not None)
        except SpaceError:
            self._may_have_stopped |= error is not None
            raise
        if error and domain and not usage.is_short:
            await self._resume(domain, error)
        return usage

    async def _stopped_by(self, domain: hypervisor.Domain) -> DiskError | None:
        try:
            error = await domain.stopped_by()
        except UnreachableError as unreachable:
            log.warning("%s", unreachable.message)
            return None
        return error and (self._last_error or error)

    async def _resume(self, domain: hypervisor.Domain, error: DiskError) -> None:
        """There is space, as it seems.  A guest that finds none once more at once lacks that of its own disks, or else
        it is ours that is not what it seems; one that stops for another reason is let be then.
        """
        now = trio.current_time()
        if now - self._resumed_s >= RESUME_AGAIN_S:
            self._resumed_s = now
            try:
                await job.resume_stopped(domain)
            except UnreachableError as unreachable:
                log.warning("%s", unreachable.message)
        elif error is DiskError.NO_SPACE and not await self._are_own_disks_full(domain):
            self._gauge.note_failure("writes find no space, though there seems to be some")
            self._look_now.set()
        else:
            log.warning("%s is paused once more because %s: its own disks are to blame", domain.name, error.value)

    async def _are_own_disks_full(self, domain: hypervisor.Domain) -> bool:
        try:
            paths = [path for _, path in await domain.layers()]
            return await blocking.call(OWN_DISKS_S, files.is_any_nearly_full, self._record, paths)
        except (UnreachableError, trio.TooSlowError) as error:
            log.warning("whether the guest's own disks have space cannot be told: %s", error)
            return False

    async def _try_scratch(self) -> None:
        """When a read or write of the guest has failed, find out whether that is for the scratch: not every such error
        pauses the guest, or is told by the files.
        """
        user = hypervisor.qemu_user(self._store.definition(self._record.id))
        directory = state.of(self._record).directory
        while not self._gauge.is_on_devices and not self._gauge.failure:
            await self._has_io_error.wait()
            self._has_io_error = trio.Event()
            problem = await directories.write_problem(directory, user)
            if problem:
                self._gauge.note_failure(f"QEMU cannot write to {directory}: {problem}")
                self._look_now.set()
            await trio.sleep(TRY_AGAIN_S)

    def _tell(self, usage: Usage) -> None:
        """Keep the figures for `list` and `show`."""
        now = time.monotonic()
        if now - self._told_s < TELL_S:
            return
        self._told_s = now
        try:
            Figures(now, usage.used, usage.bytes_per_s, usage.left_s).write(self._store.path(self._record.id))
        except OSError as error:
            log.warning("the scratch space's figures cannot be written: %s", error)

    # -- libvirt's events ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear libvirt's events, whenever libvirtd is there."""
        problems = Problems(log, "no events: %s")
        while True:
            try:
                async with hypervisor.subscribed(
                    self._record.connect,
                    self._record.snapshot.vm_uuid,
                    self._on_threshold,
                    self._on_stop,
                    self._on_io_error,
                ) as self._subscription:
                    log.info("listening to libvirt's events")
                    problems.over()
                    self._on_stop()  # it may have come while nobody listened
                    await self._set_thresholds(self._subscription)
            except (UnreachableError, NotFoundError) as error:
                problems.met(error.message)
            finally:
                self._subscription = None
            await trio.sleep(RETRY_S)

    def _on_threshold(self, node: str) -> None:
        log.info("%s has grown to its threshold", node)
        self._armed.pop(node.partition("[")[0], None)
        self._look_now.set()

    def _on_stop(self) -> None:
        self._may_have_stopped = True
        self._look_now.set()

    def _on_io_error(self, error: DiskError) -> None:
        self._last_error = error
        self._has_io_error.set()

    def _wish_thresholds(self, usage: Usage) -> None:
        """See to it that an event comes before the room is used up."""
        self._room = usage.headroom
        if self._room is None:
            return
        ahead = [self._armed[disk] - each.end for disk, each in self._gauge.used.items() if disk in self._armed]
        if len(ahead) < len(self._gauge.used) or sum(ahead) > self._room + space.CLUSTER_BYTES * len(ahead):
            self._arm.set()

    async def _set_thresholds(self, subscribed: hypervisor.Subscription) -> None:
        """Set them as they are wished, until the connection is lost."""
        self._armed.clear()
        indexes = await subscribed.domain.scratch_indexes(state.of(self._record).socket)

        async def set_all() -> None:
            while True:
                await self._arm.wait()
                self._arm = trio.Event()
                ends = {disk: each.end for disk, each in self._gauge.used.items() if disk in indexes}
                for disk, length in space.thresholds(ends, self._room or 0).items():
                    try:
                        await subscribed.domain.set_threshold(disk, indexes[disk], length)
                        self._armed[disk] = length
                    except UnreachableError as error:
                        log.info("%s", error.message)  # the job has ended, or the connection
                        await trio.sleep(filling.LONGEST_WAIT_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(set_all)
            self._look_now.set()
            await subscribed.lost.wait()
            nursery.cancel_scope.cancel()

    # -- the end -------------------------------------------------------------------------------------------------------

    async def release(self, loss: Loss, tell: Callable[[str], None]) -> None:
        """See Watch.  A job that ends by itself soon after its export was ended by somebody else, or with the VM, which
        is found out before we end it ourselves.
        """
        if loss.state is State.GAVE_UP:
            await self._end_job()
            return
        is_explained = trio.Event()

        def explained(reason: str) -> None:
            tell(reason)
            is_explained.set()

        async def explain() -> None:
            await job.explain_loss(self._record, explained)
            is_explained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(explain)
            with trio.move_on_after(job.JOB_ENDS_S):
                await is_explained.wait()
            await self._end_job()

    async def _end_job(self) -> None:
        """By the open connection, if there is one; where libvirtd is down, as soon as it is back."""
        began, problems = trio.current_time(), Problems(log, "the backup job cannot be ended yet: %s")
        while True:
            try:
                with trio.CancelScope(shield=True):
                    if self._subscription and not self._subscription.lost.is_set():
                        await job.end_on(self._subscription.domain, self._record)
                    else:
                        await job.end(self._record.kept)
                log.info("the backup job has ended %.0f ms after that", 1000 * (trio.current_time() - began))
                self.close()
                self._has_ended.set()
                return
            except UnreachableError as error:
                problems.met(error.message)
            await trio.sleep(RETRY_S)
