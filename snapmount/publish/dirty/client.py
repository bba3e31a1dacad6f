"""Reads a snapshot's dirty extents from its server, for the command line; blocks."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ...core import names
from ...core.dirtystream import Decoder, Piece, Request, StreamError
from ...core.lifecycle import State
from ...errors import SnapmountError, StateError, UnreachableError, of_exit_code
from ...records.record import Record
from ...records.store import Store
from . import address, unbound

CONNECT_S = 10.0
SILENCE_S = 30.0  # the server says every few seconds that it is there
RECEIVE_BYTES = 1 << 20
EXPLAINED_S = 3.0  # how long the record may take to tell why a stream has been cut off
LOOK_S = 0.1


def told(record: Record, store: Store, request: Request) -> Iterator[list[Piece]]:
    """The stream's pieces, as they come in, up to its end.

    Raises an error that tells why the stream is not whole: StateError if the snapshot has ended or is lost, or if there
    are too many readers, UnreachableError if its server or QEMU does not answer, NotFoundError for a disk that it has
    not.
    """
    decoder = Decoder(with_data=request.with_data)
    try:
        with contextlib.closing(_connected(record, store)) as connection:
            connection.sendall(request.line())
            while received := connection.recv(RECEIVE_BYTES):
                pieces = list(decoder.feed(received))
                if pieces and pieces[-1].line and "error" in pieces[-1].line:
                    yield pieces[:-1]
                    raise _failure(record, store, pieces[-1].line)
                yield pieces
    except TimeoutError:
        raise _explained(record, store, _unanswered(record, f"has not answered for {SILENCE_S:g} s")) from None
    except StreamError as error:
        raise _unanswered(record, f"answers in another way than this version of snapmount: {error}") from error
    except OSError as error:
        raise _explained(record, store, _unanswered(record, f"cannot be read: {error.strerror}")) from error
    if not decoder.is_whole:
        raise _explained(record, store, _unanswered(record, "has closed the connection"))


def _connected(record: Record, store: Store) -> socket.socket:
    connection = unbound()
    try:
        connection.settimeout(CONNECT_S)
        with address(store.path(record.id)) as path:
            connection.connect(path)
    except OSError as error:
        connection.close()
        is_deaf = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        what = "tells no dirty extents: was it started by an older version?" if is_deaf else "does not answer"
        raise _explained(record, store, _unanswered(record, what)) from error
    connection.settimeout(SILENCE_S)
    return connection


def _failure(record: Record, store: Store, told: Mapping[str, Any]) -> SnapmountError:
    error = of_exit_code(told.get("exit_code"))(str(told["error"]))
    return _explained(record, store, error) if isinstance(error, UnreachableError) else error


def _unanswered(record: Record, what: str) -> UnreachableError:
    return UnreachableError(
        f"the server of snapshot {record.id} of {record.snapshot.vm_name} {what}",
        names.command("snapmount", "show", record.id),
    )


def _explained(record: Record, store: Store, seen: SnapmountError) -> SnapmountError:
    """Why the stream has ended: what has become of the snapshot, or else what we have seen."""
    until_s = time.monotonic() + EXPLAINED_S
    while time.monotonic() < until_s:
        now = store.load(record.id)
        if now is None:
            return StateError(f"{_of(record)} has ended before all of it was read")
        match store.state(now):
            case State.ACTIVE:
                time.sleep(LOOK_S)
            case State.DEAD:
                remedy = names.command("snapmount", "recover", record.id)
                return StateError(f"{_of(record)}: its server has died before all of it was read", remedy)
            case state:
                why = f": {now.why}" if now.why else ""
                remedy = names.command("snapmount", "delete", record.id)
                return StateError(f"{_of(record)} is {state.value}{why}", remedy)
    return seen


def _of(record: Record) -> str:
    return f"snapshot {record.id} of {record.snapshot.vm_name}"
