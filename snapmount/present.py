"""How snapshots are shown: as JSON documents and as text.  Returns what to print; prints nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import scratch
from .core import names, units
from .errors import SpaceError
from .state import Record, State, Store

_PIPED_WIDTH = 10_000  # no wrapping for programs


def document(record: Record, store: Store) -> dict[str, Any]:
    """The JSON shape of a snapshot in `take`, `show` and (a list of them) `list`; see JSON in the man page."""
    shown = record.snapshot.document()
    for disk in shown["disks"]:
        disk["nbd_uri"] = record.export_uri(disk["name"])
    log = store.log(record.id)
    return shown | {
        "connect": record.connect,
        "state": store.state(record).value,
        "reason": record.reason,
        "mountpoint": record.mountpoint,
        "scratch": {
            "directory": record.scratch,
            "used_bytes": scratch.used_bytes(Path(record.scratch)),
            "free_bytes": _free_bytes(record),
        },
        "server": {"pid": record.server.pid, "log": str(log) if log.exists() else None},
    }


def _free_bytes(record: Record) -> int | None:
    try:
        return scratch.free_bytes(Path(record.scratch).parent)
    except SpaceError:
        return None


def _status(record: Record, state: State) -> str:
    """The state in words, with the reason where there is one."""
    if state is State.DEAD:
        return "dead: its server process is gone"
    return f"{state.value}: {record.reason}" if record.reason else state.value


def _age(record: Record) -> str:
    return units.duration((datetime.now(UTC) - record.snapshot.created).total_seconds())


def _when(record: Record) -> str:
    return f"{record.snapshot.created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def taken(record: Record, store: Store) -> str:
    """What `take` prints when the view is readable."""
    snapshot = record.snapshot
    first = f"{snapshot.vm_name}: snapshot {snapshot.id} of {_when(record)}, mounted at {record.mountpoint}"
    lines = [names.printable(first)]
    rows = [("  " + disk.file, units.size(disk.size_bytes), disk.format, disk.origin) for disk in snapshot.disks]
    lines.append(table((), rows).rstrip("\n"))
    lines += _left_out(record)
    lines.append(f"to end it: {names.command('snapmount', 'delete', snapshot.id)}")
    return _text(lines)


def listing(records: Sequence[Record], store: Store) -> str:
    """What `list` prints: a row a snapshot."""
    rows = [
        (
            record.id,
            record.snapshot.vm_name,
            _age(record),
            record.mountpoint,
            units.size(scratch.used_bytes(Path(record.scratch))),
            _status(record, store.state(record)),
        )
        for record in records
    ]
    return table(("ID", "VM", "AGE", "MOUNTPOINT", "SCRATCH", "STATE"), rows)


def details(record: Record, store: Store) -> str:
    """What `show` prints: everything of one snapshot."""
    snapshot, shown = record.snapshot, document(record, store)
    free = shown["scratch"]["free_bytes"]
    log = shown["server"]["log"]
    facts = (
        ("snapshot", f"{snapshot.id} of {snapshot.vm_name} (uuid {snapshot.vm_uuid})"),
        ("state", _status(record, store.state(record))),
        ("taken", f"{_when(record)}, {_age(record)} ago" + (", quiesced" if snapshot.quiesced else "")),
        ("mounted at", record.mountpoint),
        ("connection", record.connect),
        (
            "scratch",
            f"{record.scratch}, {units.size(shown['scratch']['used_bytes'])} used"
            + (f", {units.size(free)} free" if free is not None else ""),
        ),
        ("server", f"process {record.server.pid}" + (f", log {log}" if log else "")),
    )
    disks = [(d.name, units.size(d.size_bytes), d.format, d.origin, record.export_uri(d.name)) for d in snapshot.disks]
    lines = [table((), facts).rstrip("\n"), "", table(("DISK", "SIZE", "FORMAT", "ORIGIN", "NBD"), disks).rstrip("\n")]
    return _text([*lines, *_left_out(record)])


def _left_out(record: Record) -> list[str]:
    left_out = ", ".join(f"{each.name} ({each.why})" for each in record.snapshot.left_out)
    return [f"left out: {names.printable(left_out)}"] if left_out else []


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns.  They keep their width: a terminal that is too narrow wraps lines, nothing is cut off."""
    aligned = Table(*header, box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for row in rows:
        aligned.add_row(*(names.printable(cell) for cell in row))
    printed = io.StringIO()
    Console(file=printed, width=_PIPED_WIDTH, markup=False, emoji=False, highlight=False).print(aligned)
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
