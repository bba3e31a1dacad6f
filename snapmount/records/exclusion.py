"""Keeps two commands from making or sweeping records at the same time: each sees what the other has done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

import trio

from ..errors import StateError
from ..host.locks import cannot_write, locked, make_private
from .store import Store

DEADLINE_S = 10.0
POLL_S = 0.01


@contextlib.asynccontextmanager
async def exclusive(store: Store) -> AsyncIterator[None]:
    """Nobody else is in such a block.  Raises StateError if somebody does not leave it, or if the runtime
    directory cannot be made.
    """
    descriptor = None
    with trio.move_on_after(DEADLINE_S):
        while (descriptor := _try(store)) is None:
            await trio.sleep(POLL_S)
    if descriptor is None:
        raise StateError(f"another process has held {store.directory} for {DEADLINE_S:g} s")
    try:
        yield
    finally:
        os.close(descriptor)
        store.remove_if_empty()


def _try(store: Store) -> int | None:
    """A descriptor of the runtime directory, locked; None if somebody else has it, or has just removed it."""
    directory = store.directory
    try:
        make_private(directory)
    except OSError as error:
        raise cannot_write(directory, error) from error
    try:
        descriptor = locked(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (BlockingIOError, FileNotFoundError):
        return None
    with contextlib.suppress(OSError):
        if os.path.samestat(directory.stat(), os.fstat(descriptor)):
            return descriptor
    os.close(descriptor)
    return None
