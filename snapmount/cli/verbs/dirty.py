"""`snapmount dirty`: the dirty extents of a snapshot, as its server tells them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core import names
from ...core.dirtystream import Piece, Request
from ...core.lifecycle import State
from ...errors import NotFoundError, UsageError
from ...host import signals
from ...publish.dirty import client
from ...records.record import Record
from .. import output
from . import common

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    if arguments.data and sys.stdout.isatty():
        remedy = f"{names.command('snapmount', 'dirty', arguments.snapshot, '--data')} | PROGRAM"
        raise UsageError("--data prints the bytes of disks, and standard output is a terminal", remedy)
    store = common.store()
    record = store.find(arguments.snapshot, common.connection(arguments))
    if store.state(record) is State.DEAD:
        record = common.alive(record, store)
    _check_disks(arguments.disk, record)
    store.check_active(record, "read")
    signals.end_again()  # nothing has been made, so nothing is to be undone
    told = client.told(record, store, Request(tuple(arguments.disk), arguments.data))
    show = _as_text if not (arguments.json or arguments.data) else _as_it_is
    output.print_bytes(show(pieces) for pieces in told)
    return 0


def _check_disks(disks: list[str], record: Record) -> None:
    """Raise NotFoundError for one that the snapshot has not, or only as a URL."""
    known = [disk.name for disk in record.snapshot.disks]
    for disk in disks:
        if disk not in known:
            has = f"has {names.listed(known)}" if known else "has no disk that can be read"
            raise NotFoundError(f"snapshot {record.id} {has}, and not {disk}", f"snapmount show {record.id}")


def _as_it_is(pieces: list[Piece]) -> bytes:
    return b"".join(piece.raw for piece in pieces)


def _as_text(pieces: list[Piece]) -> bytes:
    return "".join(_lines(pieces)).encode("ascii")


def _lines(pieces: list[Piece]) -> Iterator[str]:
    for piece in pieces:
        if piece.line and "disk" in piece.line:
            line = piece.line
            yield f"{line['disk']} {line['start']} {line['length']} {'data' if line['data'] else 'zero'}\n"
