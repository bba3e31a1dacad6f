"""How snapshots are shown: as JSON documents and as text.  Returns what to print; prints nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attach import attachments
from ..attach.attachments import Attachment
from ..boot import scratchvm
from ..boot.scratchvm import ScratchVm
from ..core import names, units
from ..core.blocksize import DEFAULT_BLOCK_SIZE
from ..core.description import Description, Growth, told_pause
from ..core.document import format_time, to_document
from ..core.iscsi import Credentials, Session
from ..core.leftout import LeftOut
from ..core.lifecycle import State
from ..core.snapshot import Disk, Nvram, Snapshot
from ..errors import StateError
from ..host import glances
from ..publish import luns
from ..records.record import Record
from ..records.store import Store
from ..sources import kinds
from .tables import table

if TYPE_CHECKING:
    from ..boot.check import Came

NEW_S = 5.0


@dataclass(frozen=True)
class Shown:
    """A snapshot as it is shown."""

    record: Record
    store: Store
    sessions: list[Session] | None = None  # with its iSCSI target; None: there is none, or nobody tells
    with_secret: bool = False
    initiator_kind: str | None = None  # the one that `take` and `show` tell how to log in; None: the most usual
    expire_s: float | None = None  # after which it was just asked to end

    @property
    def _credentials(self) -> Credentials | None:
        try:
            return self.store.credentials(self.record.id) if self.record.publication else None
        except StateError:
            return None  # faults() tells

    @property
    def _expires_in_s(self) -> float:
        """As it was asked for, where hardly any of that time has passed."""
        left_s = self.record.left_s or 0
        is_new = self.expire_s is not None and 0 <= self.expire_s - left_s < NEW_S
        return self.expire_s if is_new and self.expire_s else left_s

    @property
    def scratch_vms(self) -> list[ScratchVm]:
        return scratchvm.load_all(self.store.path(self.record.id))

    @property
    def attachments(self) -> list[Attachment]:
        return attachments.current(self.store.path(self.record.id))

    def faults(self) -> list[StateError]:
        """Why not all of it can be shown."""
        directory = self.store.path(self.record.id)
        found = [*scratchvm.unreadable(directory).values(), *attachments.unreadable(directory).values()]
        try:
            self.store.credentials(self.record.id)
        except StateError as error:
            found.append(error)
        return found

    @cached_property
    def _description(self) -> Description:
        return kinds.describe(self.record, self.store)

    @property
    def _held_status(self) -> str:
        """The state in words, and what the snapshot keeps from being done as long as it is active, or what threatens
        the guest if it is dead.
        """
        status = _status(self.record, self.store.state(self.record))
        more = self._description.hold if self._is_active else self._threat
        return f"{status}: {more}" if more else status

    @property
    def _threat(self) -> str | None:
        """What a dead snapshot may do to the guest: one that was given up does nothing to it."""
        standby = self.record.standby
        is_watched = self.record.why or (standby and standby.runs())
        is_dead = self.store.state(self.record) is State.DEAD
        return self._description.unwatched if is_dead and not is_watched else None

    @property
    def _is_active(self) -> bool:
        return self.store.state(self.record) is State.ACTIVE

    @property
    def _iscsi(self) -> dict[str, Any] | None:
        """The JSON shape of its publication: few snapshots have one, and all would wait for what that loads."""
        if not self.record.publication:
            return None
        from ..publish import recipes

        return recipes.document(self.record.publication, self.sessions, self._credentials, self.with_secret)

    def document(self) -> dict[str, Any]:
        """The JSON shape of a snapshot in `take`, `show` and (a list of them) `list`; see JSON in the man page."""
        record = self.record
        shown = to_document(record.snapshot)
        for disk in shown["disks"]:
            disk["nbd_uri"] = self._description.nbd_uris.get(disk["name"])
        log = self.store.log(record.id)
        return shown | {
            "connect": record.connect,
            "state": self.store.state(record).value,
            "reason": record.why,
            "expires": record.expires and format_time(record.expires),
            "mountpoint": None if record.is_hidden else record.mountpoint,
            "iscsi": self._iscsi,
            "scratch_vms": [vm.document() for vm in self.scratch_vms],
            "attachments": [each.document() for each in self.attachments],
            "scratch": self._description.scratch,
            "server": {
                "pid": record.server.pid,
                "standby_pid": record.standby and record.standby.pid,
                "log": str(log) if log.exists() else None,
            },
            "pause_s": self._description.pause_s,
        }

    def taken(self) -> str:
        """What `take` prints when the view is readable."""
        record, snapshot = self.record, self.record.snapshot
        first = f"{snapshot.vm_name}: snapshot {snapshot.id} of {_when(record)}, {record.whereabouts}"
        lines = [names.printable(first)]
        if not record.is_hidden:
            files: list[Disk | Nvram] = [*snapshot.disks, *([snapshot.nvram] if snapshot.nvram else [])]
            lines.append(
                _indented(
                    (each.file, units.size(each.size_bytes), each.format, each.origin, _blocks(each)) for each in files
                )
            )
        lines += map(names.printable, snapshot.elsewhere)
        if record.publication:
            lines.append(_indented(luns.lun_rows(record.publication)))
            lines.append(_indented(luns.facts(record.publication, self._credentials, self.with_secret)))
        lines += _left_out(snapshot.left_out)
        lines += _changes(snapshot)
        if self._description.pause_s is not None:
            lines.append(told_pause(self._description.pause_s))
        lines += self._recipes()
        if record.expires_s is not None:
            lines.append(f"it ends by itself in {units.duration(self._expires_in_s)}")
        lines.append(f"to end it: {names.command('snapmount', 'delete', snapshot.id)}")
        return _text(lines)

    def rows(self) -> list[tuple[str, ...]]:
        """Its rows in `list`: one for it, one for each scratch VM, and one for each disk that is attached to a VM."""
        record = self.record
        row = (
            record.id,
            record.snapshot.vm_name,
            _age(record),
            "-" if record.expires_s is None else _left(record),
            "-" if record.is_hidden else record.mountpoint,
            luns.summary(record.publication, self.sessions, self._is_active) if record.publication else "-",
            _size(self._description.used_bytes),
            *_growth(self._description.growth),
            "-" if self._description.pause_s is None else units.moment(self._description.pause_s),
            self._held_status,
        )
        vms = [("", f"  {vm.name}", "", "", "", "", _overlay_size(vm), "", "", "", vm.state) for vm in self.scratch_vms]
        attached = [
            ("", f"  {each.vm_name}", "", "", "", "", "", "", "", "", f"{each.state}: {each.disk} as {each.target}")
            for each in self.attachments
        ]
        return [row, *vms, *attached]

    def details(self) -> str:
        """What `show` prints: everything of one snapshot."""
        record, snapshot, shown = self.record, self.record.snapshot, self.document()
        log = shown["server"]["log"]
        facts = [
            ("snapshot", f"{snapshot.id} of {snapshot.vm_name} (uuid {snapshot.vm_uuid})"),
            ("state", _status(record, self.store.state(record))),
            ("taken", f"{_when(record)}, {_age(record)} ago" + (", quiesced" if snapshot.quiesced else "")),
            *([("expires", f"in {_left(record)}")] if record.expires_s is not None else []),
            *([("ends", "with its last scratch VM")] if record.is_for_boot else []),
            *([] if record.is_hidden else [("mounted at", record.mountpoint)]),
            ("connection", record.connect),
            *_nvram_facts(snapshot.nvram),
            *((each.name, each.url) for each in snapshot.urls),
            *zip(itertools.chain(["changes"], itertools.repeat("")), _changes(snapshot), strict=False),
            *self._description.facts,
            ("server", f"process {record.server.pid}" + (f", log {log}" if log else "")),
        ]
        disks = [
            (
                disk.name,
                units.size(disk.size_bytes),
                str(disk.logical_block_size_bytes),
                disk.format,
                disk.origin,
                self._description.nbd_uris.get(disk.name, "-"),
            )
            for disk in snapshot.disks
        ]
        lines = [_table(facts), "", _table(disks, ("DISK", "SIZE", "BLOCK", "FORMAT", "ORIGIN", "NBD"))]
        return _text(
            [
                *lines,
                *_left_out(snapshot.left_out),
                *self._vm_details(),
                *self._attachment_details(),
                *self._target_details(),
                *self._recipes(),
            ]
        )

    def _vm_details(self) -> list[str]:
        rows = [
            (vm.name, vm.state + (", kept" if vm.is_kept else ""), _overlay_size(vm), vm.overlays)
            for vm in self.scratch_vms
        ]
        return ["", _table(rows, ("SCRATCH VM", "STATE", "WRITTEN", "OVERLAYS"))] if rows else []

    def _attachment_details(self) -> list[str]:
        rows = [(each.vm_name, each.disk, each.target, each.state, each.device) for each in self.attachments]
        return ["", _table(rows, ("HELPER VM", "DISK", "TARGET", "STATE", "IN THE GUEST"))] if rows else []

    def _target_details(self) -> list[str]:
        publication = self.record.publication
        if not publication:
            return []
        lines = ["", _table([*luns.facts(publication, self._credentials, self.with_secret)]), ""]
        lines.append(_table(luns.lun_rows(publication)))
        if self.sessions is not None:
            none = [("nobody is logged in",)]
            lines += ["", _table(luns.session_rows(self.sessions) or none)]
        elif self._is_active:
            lines += ["", f"{publication.backend} does not answer: nobody can log in"]
        return lines

    def _recipes(self) -> list[str]:
        credentials = self._credentials  # none without a publication
        if not credentials:
            return []
        from ..publish import recipes

        return recipes.of(self.record, credentials, self.with_secret, self.initiator_kind)


def _nvram_facts(nvram: Nvram | None) -> list[tuple[str, str]]:
    return [("nvram", f"{units.size(nvram.size_bytes)}, {nvram.format}, of {nvram.origin}")] if nvram else []


def _changes(snapshot: Snapshot) -> list[str]:
    """Of which disks it is known what has changed, and why of others it is not; and the checkpoint."""
    lines = [f"checkpoint {snapshot.checkpoint} is of this moment"] if snapshot.checkpoint else []
    if snapshot.since is None:
        return lines
    known = [disk.name for disk in snapshot.disks if disk.full is None]
    lines += [f"since checkpoint {snapshot.since}: the changes of {names.listed(known)} are known"] if known else []
    return lines + [names.printable(f"{disk.name} is full: {disk.full}") for disk in snapshot.disks if disk.full]


def _blocks(file: Disk | Nvram) -> str:
    """What who opens the file must know of its logical blocks, where they are not as everywhere."""
    if isinstance(file, Nvram) or file.logical_block_size_bytes == DEFAULT_BLOCK_SIZE:
        return ""
    return f"blocks of {file.logical_block_size_bytes} bytes"


def _growth(growth: Growth | None) -> tuple[str, str]:
    """How fast it grows and how long its space lasts then, for `list`."""
    if not growth:
        return "-", "-"
    return units.rate(growth.bytes_per_s), units.duration(growth.left_s) if growth.left_s is not None else "-"


def _size(length: int | None, unknown: str = "-") -> str:
    return unknown if length is None else units.size(length)


def _status(record: Record, state: State) -> str:
    """The state in words, with the reason where there is one."""
    if state is State.DEAD:
        then = f"; {record.why}" if record.why else ""
        return f"dead: its server process is gone{then} ({names.command('snapmount', 'recover', record.id)})"
    return f"{state.value}: {record.why}" if record.why else state.value


def _age(record: Record) -> str:
    return units.duration((datetime.now(UTC) - record.snapshot.created).total_seconds())


def _left(record: Record) -> str:
    return units.duration(record.left_s or 0)


def _when(record: Record) -> str:
    return f"{record.snapshot.created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _overlay_size(vm: ScratchVm) -> str:
    return _size(glances.used_bytes(Path(vm.overlays)))


def booted(vm: ScratchVm, record: Record, came: Came | None = None) -> str:
    """What `boot` prints when the scratch VM runs, and what was waited for has come."""
    how = "KVM" if vm.accelerator == "kvm" else "TCG (without KVM)"
    where = f"snapshot {record.id} of {_when(record)}"
    virsh = ("virsh", "-c", record.connect)
    lines = [
        names.printable(f"{record.snapshot.vm_name}: scratch VM {vm.name} runs on {where}, with {how}"),
        *_left_out(vm.left_out),
        *(f"note: {names.printable(note)}" for note in vm.notes),
        *([names.printable(str(came))] if came else []),
    ]
    if vm.has_console:
        console = names.command(*virsh, "console", vm.name)
        lines.append(names.printable(f"its console: {console}, logged in {vm.console_log}"))
    if vm.is_kept:
        lines.append(f"it is kept until: {names.command('snapmount', 'delete', '--force', record.id)}")
    else:
        ends = ", and the snapshot with the last one" if record.is_for_boot else ""
        lines.append(names.printable(f"its writes go when it ends{ends}: {names.command(*virsh, 'destroy', vm.name)}"))
    return _text(lines)


def attached(made: Sequence[Attachment], record: Record) -> str:
    """What `attach` prints when the disks are plugged in."""
    helper, snapshot = made[0].vm_name, record.snapshot
    sizes = {disk.name: units.size(disk.size_bytes) for disk in snapshot.disks}
    first = f"{helper}: disks of {snapshot.vm_name}, snapshot {record.id} of {_when(record)}, attached read-only"
    return _text(
        [
            names.printable(first),
            _indented((each.disk, sizes[each.disk], f"as {each.target}", each.device) for each in made),
            f"to detach them: {names.command('snapmount', 'detach', record.id, helper)}",
        ]
    )


def listing(snapshots: Iterable[Shown]) -> str:
    """What `list` prints: a row a snapshot."""
    return table(
        ("ID", "VM", "AGE", "EXPIRES", "MOUNTPOINT", "ISCSI", "SCRATCH", "GROWTH", "SCRATCH LEFT", "PAUSED", "STATE"),
        [row for each in snapshots for row in each.rows()],
    )


def _table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    return table(header, rows).rstrip("\n")


def _indented(rows: Iterable[Sequence[str]]) -> str:
    return _table([("  " + first, *rest) for first, *rest in rows])


def _left_out(devices: Iterable[LeftOut]) -> list[str]:
    left_out = ", ".join(f"{each.name} ({each.why})" for each in devices)
    return [f"left out: {names.printable(left_out)}"] if left_out else []


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
