"""What has been ended or recovered, as JSON documents and as text.  Returns what to print; prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..attach.attachments import Attachment
from ..core import names
from ..core.document import to_document
from ..lifecycle.ends import Ended, Hidden, listed
from ..records.record import Record
from ..records.store import Store
from .present import Shown

if TYPE_CHECKING:
    from ..lifecycle.recovery import Recovery

_NAMED = 3  # more are counted


def ended_document(ended: Ended | Hidden | Record) -> dict[str, Any]:
    """The JSON shape of a snapshot in `umount` and (a list of them) `delete`, of a record of one that could not be
    ended too; see JSON in the man page.
    """
    record = ended if isinstance(ended, Record) else ended.record
    is_deleted = isinstance(ended, Ended)
    return {
        "id": record.id,
        "vm": {"name": record.snapshot.vm_name, "uuid": record.snapshot.vm_uuid},
        "deleted": is_deleted,
        "scratch_vms": list(ended.scratch_vms) if isinstance(ended, Ended) else [],
        "attachments": [each.document() for each in ended.unplugged] if isinstance(ended, Ended) else [],
        "luns": ended.luns if isinstance(ended, Ended) else 0,
        "readers": [to_document(reader) for reader in ended.readers] if isinstance(ended, Hidden) else [],
    }


def ended_text(ended: Ended | Hidden) -> str:
    """A line that tells that the snapshot has ended, and what has gone with it."""
    record = ended.record
    snapshot = f"snapshot {record.id} of {record.snapshot.vm_name}"
    if isinstance(ended, Hidden):
        return _line(
            f"{snapshot} is no longer mounted at {record.mountpoint}; it ends when its files have been closed by "
            f"{listed(ended.readers)}"
        )
    parts = [f"{snapshot} is ended"]
    if ended.scratch_vms:
        parts.append(f"{_counted(ended.scratch_vms, 'scratch VM')} destroyed")
    parts += [f"{disks} unplugged from {helper}" for helper, disks in _by_helper(ended.unplugged)]
    if ended.luns:
        has = "has" if ended.luns == 1 else "have"
        parts.append(f"{ended.luns} LUN{'s' * (ended.luns != 1)} {has} been withdrawn")
    return _line("; ".join(parts))


def detached_text(unplugged: Sequence[Attachment], record: Record) -> str:
    """What `detach` prints when the guests have let go of the disks: a line for each helper."""
    snapshot = f"snapshot {record.id} of {record.snapshot.vm_name}"
    if not unplugged:
        return _line(f"{snapshot}: no disk of it was attached")
    return "".join(_line(f"{snapshot}: {disks} detached from {helper}") for helper, disks in _by_helper(unplugged))


def recovery_document(done: Recovery, store: Store) -> dict[str, Any]:
    """The JSON shape of what `recover` has done; see JSON in the man page."""
    removed = [one for one in done.recovered if one.why_removed]
    return {
        "reattached": [Shown(one.record, store).document() for one in done.recovered if not one.why_removed],
        "removed": [
            {"id": one.record.id, "vm": one.record.snapshot.vm_name, "why": one.why_removed} for one in removed
        ],
        "orphans": [orphan.document() for orphan in done.orphans],
    }


def recovery_text(done: Recovery) -> str:
    """A line for each thing that `recover` has done."""
    removed = [f"removed {orphan.path}, {orphan.why}" for orphan in done.orphans if orphan.is_removed]
    return "".join(map(_line, [*map(str, done.recovered), *removed]))


def _by_helper(unplugged: Sequence[Attachment]) -> Iterable[tuple[str, str]]:
    """Each helper, with its disks and that they have been."""
    for helper in dict.fromkeys(each.vm_name for each in unplugged):
        yield helper, _counted([each.disk for each in unplugged if each.vm_name == helper], "disk")


def _counted(things: Sequence[str], kind: str) -> str:
    """'scratch VM a has been', 'disks a and b have been', '5 disks have been'."""
    kinds = f"{kind}{'s' * (len(things) > 1)}"
    if len(things) > _NAMED:
        return f"{len(things)} {kinds} have been"
    return f"{kinds} {names.listed(things)} {'have' if len(things) > 1 else 'has'} been"


def _line(text: str) -> str:
    return f"{names.printable(text)}\n"
