"""Recovers snapshots whose server has died: a new process takes one over, or removes what cannot be taken over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from ..core import names
from ..core.checkpoint import Checkpoint
from ..core.lifecycle import State
from ..errors import InterruptedByUserError, LeftoverError, SnapmountError, StateError
from ..host import interruptible
from ..records import checkpoints as records
from ..records.record import Record
from ..records.store import Store
from . import adoption, checkpoints, orphans, server
from .orphans import Orphan

Tell = Callable[[str], None]

OTHERS_S = 30.0  # that another process is given to recover a snapshot, or to give it back
POLL_S = 0.1


@dataclass(frozen=True)
class Recovered:
    """What has become of a snapshot."""

    record: Record
    why_removed: str | None = None  # a sentence; None if it has been re-attached

    def __str__(self) -> str:
        snapshot = self.record.snapshot
        when = f"{snapshot.created:%Y-%m-%d %H:%M:%S} UTC"
        return self.why_removed or (
            f"{snapshot.vm_name}: re-attached to snapshot {snapshot.id} of {when}, {self.record.whereabouts}"
        )


@dataclass
class Recovery:
    """What `recover` has done."""

    recovered: list[Recovered] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    errors: list[SnapmountError] = field(default_factory=list)


def is_dead(record: Record, store: Store) -> bool:
    """Whether no process serves or undoes it."""
    return store.state(record) in (State.DEAD, State.LEFTOVER) and not store.is_served(record.id)


def dead(store: Store, word: str) -> list[Record]:
    """The dead snapshots that the word means."""
    return [record for record in store.load_all()[0] if record.is_meant_by(word) and is_dead(record, store)]


def recover(record: Record, store: Store, verbose: bool, tell: Tell) -> Recovered:
    """Re-attach the snapshot, or remove it where that cannot be.

    Raises SnapmountError if neither can be done now; then it is left as it is.
    """
    try:
        server.start(partial(adoption.adopted, record.id, store), store, verbose, tell)
    except InterruptedByUserError as error:
        if store.load(record.id) is None:
            return Recovered(record, error.message)
        remedy = names.command("snapmount", "recover", record.id)
        raise InterruptedByUserError(f"interrupted; snapshot {record.id} is as it was", remedy) from None
    except server.ServerDiedError as death:
        if store.load(record.id) is None:
            return Recovered(record, death.message)
        remedy = names.command("snapmount", "recover", record.id)
        raise SnapmountError(f"{death.what}; snapshot {record.id} is as it was", remedy) from None
    except SnapmountError as error:
        if store.load(record.id) is not None:
            raise
        return Recovered(record, error.message)
    return Recovered(store.load(record.id) or record)


def alive(record: Record, store: Store, tell: Tell) -> Record:
    """The snapshot re-attached, or as it is where that cannot be done now, which is told.  Raises StateError if it
    has been removed.
    """
    try:
        recovered = recover(record, store, False, tell)
    except InterruptedByUserError:
        raise
    except SnapmountError as error:
        tell(error.message)
        return record
    if recovered.why_removed:
        raise StateError(recovered.why_removed)
    tell(str(recovered))
    return recovered.record


def recover_all(words: Sequence[str], store: Store, verbose: bool, tell: Tell) -> Recovery:
    """Recover the snapshots that the words mean; if there are none, all dead ones, and remove what is orphaned."""
    done = Recovery()
    for record in _meant(words, store, done, tell):
        try:
            done.recovered.append(recover(record, store, verbose, tell))
        except InterruptedByUserError as error:
            done.errors.insert(0, error)  # what has been done by now is told all the same
            return done
        except SnapmountError as error:
            done.errors.append(error)
    if not words:
        try:
            done.orphans += interruptible.run(orphans.sweep, store, tell)
            done.orphans += map(_swept, interruptible.run(checkpoints.swept, store, tell))
        except InterruptedByUserError as error:
            done.errors.insert(0, error)
        except SnapmountError as error:
            done.errors.append(error)
        done.errors += [
            LeftoverError(f"{orphan.path} is left: {orphan.why}", orphan.remedy)
            for orphan in done.orphans
            if not orphan.is_removed
        ]
    return done


def _swept(checkpoint: Checkpoint) -> Orphan:
    why = f"checkpoint {checkpoint.name} of {checkpoint.vm_name}, whose snapshot has gone and has not ended well"
    return Orphan(str(records.path(checkpoint)), why, True)


def _meant(words: Sequence[str], store: Store, done: Recovery, tell: Tell) -> list[Record]:
    """The dead ones of those that are meant."""
    if not words:
        records, broken = store.load_all()
        done.errors += broken
        return [record for record in records if _is_left_dead(record, store)]
    found = []
    for word in words:
        try:
            record = store.find(word)
        except SnapmountError as error:
            done.errors.append(error)
            continue
        if _is_left_dead(record, store):
            found.append(record)
        elif now := store.load(record.id):
            tell(f"snapshot {record.id} is {store.state(now).value}, in the hands of {store.holder(record.id)}")
        else:
            tell(f"snapshot {record.id} has just been ended")
    return found


def _is_left_dead(record: Record, store: Store) -> bool:
    """Whether it is dead; where another process is about to recover or undo it, when that has succeeded or failed."""
    with contextlib.suppress(trio.TooSlowError):
        interruptible.run(_until_nobody_recovers, record, store)
    now = store.load(record.id)
    return now is not None and is_dead(now, store)


async def _until_nobody_recovers(record: Record, store: Store) -> None:
    with trio.fail_after(OTHERS_S):
        while store.state(store.load(record.id) or record) in (State.DEAD, State.LEFTOVER):
            if not store.is_served(record.id):
                return
            await trio.sleep(POLL_S)
