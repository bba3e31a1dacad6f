"""The checkpoints of VMs: which there are, what becomes of the one that is made with a snapshot, and their end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from .. import hypervisor
from ..core import names
from ..core.checkpoint import Checkpoint, Since, default_name, since
from ..errors import NotFoundError, SnapmountError, StateError
from ..records import checkpoints
from ..records.record import Record
from ..records.store import Store
from ..sources import registry
from . import keeping

log = logging.getLogger(__name__)
T = TypeVar("T")

DISK_S = 30.0  # for the records, on a disk that may have much else to do


@dataclass(frozen=True)
class Vm:
    """A VM, which may be gone while records of its checkpoints are left."""

    name: str
    uuid: str


async def vm_of(word: str, connect: str) -> Vm:
    """The VM of that name or uuid.  Raises NotFoundError, UnreachableError."""
    try:
        async with hypervisor.connected(connect) as connection:
            domain = await connection.domain(word)
            return Vm(domain.name, domain.uuid)
    except NotFoundError:
        left = await checkpoints.on_disk(checkpoints.named, word)
        if left is None:
            raise
        return Vm(left.vm_name, left.vm_uuid)


async def of_vm(vm_uuid: str) -> list[Checkpoint]:
    """All of the VM, oldest first.  Raises StateError."""
    return await checkpoints.on_disk(checkpoints.of_vm, vm_uuid)


async def meant(vm_uuid: str, asked: str | None) -> Since | None:
    """The checkpoint from which on changes are asked for; None if they are not.  Raises StateError."""
    return None if asked is None else since(asked, await of_vm(vm_uuid))


async def name_of_new(vm_name: str, vm_uuid: str, asked: str | None, snapshot_id: str) -> str | None:
    """What a checkpoint will be called that is asked for by a name, or by '' for any; None if none is.

    Raises StateError if the VM has one of that name.
    """
    if asked is None:
        return None
    name = asked or default_name(snapshot_id)
    found = await checkpoints.on_disk(checkpoints.load, vm_uuid, name)
    if found and found.counts:
        remedy = names.command("snapmount", "checkpoints", vm_name, "--delete", name)
        raise StateError(f"{vm_name} has a checkpoint {name} already, of {found.created:%Y-%m-%d %H:%M:%S} UTC", remedy)
    return name


async def settle(record: Record) -> None:
    """The snapshot ends: the checkpoint that was made with it counts from now on, or goes if who has read the snapshot
    has not read all of it.  What cannot go now does not count, and goes at the next time.
    """
    try:
        found = await _made_with(record)
        if found is None:
            return
        if record.was_shown and record.reason is None:
            await checkpoints.keep(replace(found, counts=True))
            await keeping.begin(found.vm_uuid)
        else:
            await _remove(found)
    except SnapmountError as error:
        log.warning("checkpoint %s does not count, and is left: %s", record.snapshot.checkpoint, error.message)


async def sweep(vm_uuid: str, store: Store, tell: Callable[[str], None]) -> list[Checkpoint]:
    """Remove what checkpoints of snapshots have left that are gone and have not ended well; returns those that are
    removed.
    """
    swept = []
    for checkpoint in await of_vm(vm_uuid):
        if not checkpoint.counts and store.load(checkpoint.snapshot) is None:
            try:
                await _remove(checkpoint)
                swept.append(checkpoint)
            except SnapmountError as error:
                tell(f"checkpoint {checkpoint.name}, which does not count, is left: {error.message}")
    return swept


async def swept(store: Store, tell: Callable[[str], None]) -> list[Checkpoint]:
    """The same for all VMs; and see that somebody watches what must be watched.  Raises StateError."""
    found = []
    for vm_uuid in await checkpoints.on_disk(checkpoints.vms):
        found += await sweep(vm_uuid, store, tell)
        await keeping.begin(vm_uuid)
    return found


async def check_free(record: Record) -> None:
    """Raise StateError if another checkpoint has the name of the one that will be made with a snapshot: what it keeps
    would be forgotten.
    """
    snapshot = record.snapshot
    if snapshot.checkpoint is None:
        return
    other = await checkpoints.on_disk(checkpoints.load, snapshot.vm_uuid, snapshot.checkpoint)
    if other:
        raise StateError(
            f"{snapshot.vm_name} has a checkpoint {other.name} already, of snapshot {other.snapshot}, which has not "
            "ended well yet",
            names.command("snapmount", "delete", other.snapshot),
        )


async def discard(checkpoint: Checkpoint) -> None:
    """Remove all that is kept of a checkpoint.  Idempotent.  Raises LeftoverError, UnreachableError."""
    log.info("removing checkpoint %s of %s", checkpoint.name, checkpoint.vm_name)
    await registry.of(checkpoint).discard(checkpoint)
    await checkpoints.on_disk(checkpoints.forget, checkpoint)


async def _remove(checkpoint: Checkpoint) -> None:
    """The same; who watches over the VM's checkpoints has ended with the last one then."""
    async with keeping.ending(checkpoint.vm_uuid):
        await discard(checkpoint)


async def discard_of(record: Record) -> None:
    """Remove the one that was made with a snapshot, if it is there.  Raises as discard() does."""
    if found := await _made_with(record):
        await _remove(found)


async def _made_with(record: Record) -> Checkpoint | None:
    """The one that was made with a snapshot, if it is there.  Raises StateError."""
    if record.snapshot.checkpoint is None:
        return None
    found = await checkpoints.on_disk(checkpoints.load, record.snapshot.vm_uuid, record.snapshot.checkpoint)
    return found if found and found.snapshot == record.id else None


async def delete(vm: Vm, wanted: Sequence[str]) -> list[Checkpoint]:
    """Remove the checkpoints of those names; returns them.  Raises NotFoundError before any is removed, and as
    discard() does.
    """
    known = {each.name: each for each in await of_vm(vm.uuid)}
    for name in wanted:
        if name not in known:
            raise NotFoundError(
                f"{vm.name} has no checkpoint {name}; it has {names.listed(list(known)) or 'none'}",
                names.command("snapmount", "checkpoints", vm.name),
            )
    for name in wanted:
        await _remove(known[name])
    return [known[name] for name in wanted]


async def keep(vm_uuid: str, number: int) -> list[Checkpoint]:
    """Remove all that count but the newest ones; returns them, oldest first.  Raises as discard() does."""
    counting = [each for each in await of_vm(vm_uuid) if each.counts]
    for checkpoint in (old := counting[: max(0, len(counting) - number)]):
        await _remove(checkpoint)
    return old
