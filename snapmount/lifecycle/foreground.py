"""Runs a session in this process: until Ctrl-C or an unmount."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial

import trio

from ..errors import SnapmountError
from ..host import logs, notify, priorities
from ..host.processes import Process
from ..records.record import Record
from ..records.store import Store
from . import adoption, recovery, session, standby, taking
from .planning import Request


class Reporter:
    """Tells how the session goes."""

    def __init__(self, store: Store, show: Callable[[Record], None], tell: Callable[[str], None]) -> None:
        self._store = store
        self._show = show
        self._tell = tell
        self.standby: Process | None = None
        self._taking = contextlib.ExitStack()

    @contextlib.contextmanager
    def standing_by(self) -> Iterator[None]:
        """A standby while a snapshot is taken, whose guest may be paused or frozen.  When the view is ready it ends:
        from then on whoever has started this process takes care of its end.
        """
        with self._taking:
            self.standby = self._taking.enter_context(standby.standing_by(self._store))
            yield

    def warn(self, text: str) -> None:
        self._tell(f"warning: {text}")

    def recorded(self, record: Record) -> None:
        """Let what is logged go to the journal, where there is one, else to the snapshot's log too."""
        self.standby = None  # from when the view is ready on; the record has named it
        session.show_as_server(record)
        root = logging.getLogger()
        level = min(root.level, logging.INFO)
        if priorities.has_journal():
            journal = logging.StreamHandler()
            journal.setFormatter(priorities.JournalFormatter())
            logging.basicConfig(level=level, handlers=[journal], force=True)
        else:
            for handler in root.handlers:
                handler.setLevel(root.level)
            root.addHandler(_to_file(self._store.open_log(record.id)))
            root.setLevel(level)
        logging.getLogger("pyfuse3").setLevel(logging.INFO)  # its debug output is a line for each request

    def ready(self, record: Record) -> None:
        self._taking.close()
        self._show(record)
        notify.notify(notify.READY, f"STATUS=snapshot {record.id}, {record.whereabouts}")

    def ending(self) -> None:
        notify.notify(notify.STOPPING, "STATUS=undoing the snapshot")

    async def wait_abandoned(self) -> None:
        await trio.sleep_forever()


def _to_file(descriptor: int) -> logging.Handler:
    handler = logging.StreamHandler(os.fdopen(descriptor, "w"))
    handler.setFormatter(logs.PrintableFormatter(logs.FORMAT))
    return handler


def serve(request: Request, store: Store, reporter: Reporter, tell: Callable[[str], None]) -> None:
    """Serve what is asked for: the snapshot that such a process has left when it died, or else a new one.

    Raises SnapmountError as session.run() does.
    """
    for record in recovery.dead(store, request.vm):
        if not _is_asked_for(record, request):
            tell(str(recovery.recover(record, store, False, tell)))
            continue
        try:
            return trio.run(session.run, partial(adoption.adopted, record.id, store), reporter)
        except SnapmountError as error:
            if store.load(record.id) is not None:
                raise
            tell(error.message)
    with reporter.standing_by():
        return trio.run(session.run, partial(taking.taken, request, store), reporter)


def _is_asked_for(record: Record, request: Request) -> bool:
    """Whether it is shown where the request wants its snapshot."""
    if request.mountpoint is None or record.is_hidden:
        return request.mountpoint is None and record.is_hidden and not record.is_for_boot
    return record.mountpoint == os.path.realpath(request.mountpoint)
