"""An image's extents, found out once for all who ask for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..core.extents import ExtentMap

GLANCE_S = 0.5  # how long the extents may take before a file's attributes are told without them


class _Search:
    """One try to find them."""

    def __init__(self) -> None:
        self.started = trio.current_time()
        self.ended = trio.Event()
        self.extents: ExtentMap | None = None
        self.error: OSError | None = None

    async def result(self) -> ExtentMap:
        """Raises OSError."""
        await self.ended.wait()
        if self.extents is None:
            assert self.error
            raise OSError(*self.error.args) from self.error
        return self.extents


class Extents:
    """What `find` returns, which raises OSError where they cannot be had: it is called anew when somebody asks next."""

    def __init__(self, nursery: trio.Nursery, find: Callable[[], Awaitable[ExtentMap]]) -> None:
        self.known: ExtentMap | None = None
        self._nursery = nursery
        self._find = find
        self._search: _Search | None = None

    async def all(self) -> ExtentMap:
        """All of them.  Raises OSError."""
        if self.known is None:
            self.known = await self._searching().result()
        return self.known

    async def allocated_bytes(self) -> int | None:
        """See Image.  Who asks waits for the first moments of the search only: a listing asks many times."""
        if self.known is None:
            search = self._searching()
            with trio.move_on_at(search.started + GLANCE_S):
                self.known = await search.result()
        return self.known.data_bytes if self.known else None

    def _searching(self) -> _Search:
        if self._search is None:
            self._search = _Search()
            self._nursery.start_soon(self._run, self._search)
        return self._search

    async def _run(self, search: _Search) -> None:
        """It goes on where who asked first waits no longer."""
        try:
            search.extents = await self._find()
        except OSError as error:
            search.error = error
            self._search = None  # who asks next tries anew
        search.ended.set()
