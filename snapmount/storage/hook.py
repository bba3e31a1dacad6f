"""The driver for all storage that snapmount does not know itself: a hook of the administrator's does it.

A hook takes one origin at a time, and is asked once for each.  What it needs to find a snapshot again it says in its
plan, so that its delete undoes a take of which nobody knows how far it has come.  settings.py tells which one serves an
origin, unless one is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import trio

from ..core import names
from ..core.document import DocumentError, to_document
from ..core.extents import Extent
from ..errors import LeftoverError, SnapmountError, SpaceError, StateError, UnreachableError
from ..host import blocking, devices
from . import hookprogram, settings, shapes
from .driver import Clone, Offer, Room, Task
from .hookdocument import (
    VERSION,
    ChangedQuestion,
    Older,
    PlanAnswer,
    PlanQuestion,
    Question,
    SnapshotQuestion,
    StatusAnswer,
    Verb,
    read_changed,
    read_done,
    read_plan,
    read_status,
)
from .shapes import HookKept

T = TypeVar("T")

NAME = "hook"

# What each verb may take.  The guest is paused while hooks take their snapshots.
DEADLINES_S: Mapping[Verb, float] = {
    Verb.PLAN: 10.0,
    Verb.TAKE: 10.0,
    Verb.STATUS: 20.0,
    Verb.CHANGED: 600.0,
    Verb.DELETE: 30.0,
}
LOOKED_AT_S = 5.0
CHANGED_MAX_BYTES = 64 << 20  # a million extents


class HookDriver:
    """Keeps the protocol Driver by means of the hook at that path, else of those that the settings name.

    A clone is undone and read by the hook that has made it, whichever this driver has.
    """

    def __init__(self, hook: str | None = None, settings_path: str = settings.PATH) -> None:
        self._hook = hook
        self._settings = settings_path
        self._told: dict[str, tuple[StatusAnswer, float]] = {}  # by name; until when it holds

    async def why_not(self, origin: str) -> str | None:
        """As Driver says: also what keeps the hook from being run."""
        try:
            known = await devices.names(origin)
            hook = await self._serving(known)
            return f"none is set for it in {self._settings}" if hook is None else (await _plan(hook, known)).why_not
        except SnapmountError as error:
            return error.message

    async def plan(self, task: Task) -> Sequence[Offer]:
        """One for each origin.  Raises StateError."""
        return [await self._offer(task, origin) for origin in task.origins]

    async def _offer(self, task: Task, origin: str) -> Offer:
        known = await devices.names(origin)
        hook = await self._serving(known)
        if hook is None:
            raise StateError(f"{origin}: no hook is set for it in {self._settings}")
        answer = await _plan(hook, known)
        if answer.pause_s is None:
            raise StateError(f"{origin}: {hook}: {answer.why_not}")
        kept = HookKept(hook, task.snapshot_id, _name(task.snapshot_id, origin), task.reader, answer.state)
        clone = Clone(NAME, (origin,), (), to_document(kept))
        costs = (answer.pause_s, answer.remedy, answer.guest_pays)
        return Offer(clone, *costs, gives_url=answer.gives_url, is_concurrent=True, is_comparable=answer.comparable)

    async def _serving(self, known: Sequence[str]) -> str | None:
        if self._hook is not None:
            return self._hook
        read = await blocking.on_path(self._settings, LOOKED_AT_S, settings.read, self._settings)
        return read.hook_of(*known)

    async def prepare(self, clone: Clone) -> None:
        """Nothing: what a hook can do before the pause, it does when it plans."""

    async def create(self, clone: Clone) -> None:
        """As Driver says.  A take is waited for, cancelled or not, so that remove() finds what it has made: it has a
        deadline of its own.
        """
        self._told.clear()
        with trio.CancelScope(shield=True):
            await _ask(clone, _question(clone, Verb.TAKE), StateError, read_done)

    async def activate(self, clone: Clone) -> Clone:
        """As Driver says."""
        status = await self._status(clone, UnreachableError)
        if status.frozen is None:
            raise StateError(f"{_kept(clone).hook}: {clone.origins[0]}: {status.lost}")
        return replace(clone, frozen=(status.frozen,))

    async def why_lost(self, clone: Clone) -> str | None:
        """As Driver says.  Raises UnreachableError if the hook fails, which does not tell."""
        return (await self._status_of_late(clone, UnreachableError)).lost

    async def rooms(self, clone: Clone) -> Sequence[Room]:
        """Those that the hook knows of: none perhaps, of storage that watches itself."""
        return (await self._status_of_late(clone, SpaceError)).rooms

    async def _status_of_late(self, clone: Clone, kind: type[SnapmountError]) -> StatusAnswer:
        """What the hook has told last, if that holds still: a watch asks every second."""
        told, until = self._told.get(_kept(clone).name, (None, 0.0))
        return told if told and time.monotonic() < until else await self._status(clone, kind)

    async def _status(self, clone: Clone, kind: type[SnapmountError]) -> StatusAnswer:
        name = _kept(clone).name
        self._told.pop(name, None)
        status = await _ask(clone, _question(clone, Verb.STATUS), kind, read_status)
        if status.lost is None:
            self._told[name] = status, time.monotonic() + status.holds_s
        return status

    async def changed(self, older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
        """As Driver says."""
        before, now = _kept(older), _question(newer, Verb.CHANGED)
        if before.hook != _kept(newer).hook:
            raise StateError(f"{origin}: its snapshot before was taken by another hook, {before.hook}")
        question = ChangedQuestion(
            **{each.name: getattr(now, each.name) for each in fields(now)},
            older=Older(before.snapshot, before.name, before.state),
        )
        answer = await _ask(newer, question, StateError, read_changed, CHANGED_MAX_BYTES)
        if isinstance(answer, str):
            raise StateError(f"{_kept(newer).hook}: {origin}: {answer}")
        return answer

    async def remove(self, clone: Clone) -> None:
        """As Driver says.  A take that has outlived the process that asked for it is ended first."""
        self._told.clear()
        with trio.CancelScope(shield=True):
            await _end_left(_kept(clone))
            await _ask(clone, _question(clone, Verb.DELETE), LeftoverError, read_done)

    def by_hand(self, clone: Clone) -> Sequence[str]:
        """As Driver says."""
        question = json.dumps(to_document(_question(clone, Verb.DELETE)))
        return [f"{names.command('printf', '%s', question)} | {names.command(_kept(clone).hook, Verb.DELETE.value)}"]


def _name(snapshot_id: str, origin: str) -> str:
    """What the snapshot of that origin is called on its storage, which may hold other disks of the VM too."""
    return f"{names.directory(snapshot_id)}-{hashlib.sha256(os.fsencode(origin)).hexdigest()[:8]}"


def _kept(clone: Clone) -> HookKept:
    return shapes.of(HookKept, clone)


def _question(clone: Clone, verb: Verb) -> SnapshotQuestion:
    kept = _kept(clone)
    return SnapshotQuestion(
        VERSION, verb, DEADLINES_S[verb], clone.origins[0], kept.snapshot, kept.name, kept.reader, kept.state
    )


async def _plan(hook: str, known: Sequence[str]) -> PlanAnswer:
    """Raises StateError."""
    question = PlanQuestion(VERSION, Verb.PLAN, DEADLINES_S[Verb.PLAN], known[0], tuple(known))
    return await _answer(hook, question, StateError, read_plan)


async def _ask(
    clone: Clone,
    question: SnapshotQuestion,
    kind: type[SnapmountError],
    read: Callable[[bytes], T],
    most_bytes: int = hookprogram.ANSWER_MAX_BYTES,
) -> T:
    """What the hook that has made the clone answers."""
    return await _answer(_kept(clone).hook, question, kind, read, most_bytes)


async def _answer(
    hook: str,
    question: Question,
    kind: type[SnapmountError],
    read: Callable[[bytes], T],
    most_bytes: int = hookprogram.ANSWER_MAX_BYTES,
) -> T:
    """Raises an error of that kind, which names the hook, the verb and what is wrong."""
    verb = question.verb.value
    takes = question.name if isinstance(question, SnapshotQuestion) and question.verb is Verb.TAKE else None
    try:
        answer = await hookprogram.run(
            hook, verb, json.dumps(to_document(question)).encode(), question.deadline_s, most_bytes, takes
        )
        return await trio.to_thread.run_sync(read, answer)
    except hookprogram.HookError as failure:
        error = kind(f"the hook {hook} {verb} {failure.why}", failure.remedy)
        error.evidence = failure.said
        raise error from failure
    except DocumentError as error:
        raise kind(f"what the hook {hook} {verb} has answered cannot be used: {error}") from error


async def _end_left(kept: HookKept) -> None:
    """Raises LeftoverError."""
    with trio.move_on_after(DEADLINES_S[Verb.DELETE]):
        if await trio.to_thread.run_sync(hookprogram.end_left, kept.name, abandon_on_cancel=True):
            return
    raise LeftoverError(f"the hook {kept.hook} {Verb.TAKE.value} of {kept.name} runs on, and cannot be killed")
