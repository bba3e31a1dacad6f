"""An image's extents, found out once for all who ask for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..core.extents import ExtentMap

Tell = Callable[[ExtentMap], None]

GLANCE_S = 0.5  # how long the extents may take before a file's attributes are told without them


class _Search:
    """One try to find them."""

    def __init__(self) -> None:
        self.started = trio.current_time()
        self.ended = trio.Event()
        self.so_far = ExtentMap()
        self.goes_on = trio.Event()  # another one each time
        self.extents: ExtentMap | None = None
        self.error: OSError | None = None

    def tell(self, so_far: ExtentMap) -> None:
        """More has been found; the map may grow on."""
        self.so_far = so_far
        self.wake()

    def wake(self) -> None:
        self.goes_on.set()
        self.goes_on = trio.Event()

    async def result(self) -> ExtentMap:
        """Raises OSError."""
        await self.ended.wait()
        if self.extents is None:
            assert self.error
            raise OSError(*self.error.args) from self.error
        return self.extents


class Extents:
    """What `find` returns, which raises OSError where they cannot be had: it is called anew when somebody asks next.
    On its way it tells what it has found so far.
    """

    def __init__(self, nursery: trio.Nursery, find: Callable[[Tell], Awaitable[ExtentMap]]) -> None:
        self.known: ExtentMap | None = None
        self._nursery = nursery
        self._find = find
        self._search: _Search | None = None

    async def all(self) -> ExtentMap:
        """All of them.  Raises OSError."""
        if self.known is None:
            self.known = await self._searching().result()
        return self.known

    async def beyond(self, offset: int) -> ExtentMap:
        """Those that have been found when some of what follows the offset, within the disk, has; the map may grow on.
        Raises OSError.
        """
        if self.known is None:
            search = self._searching()
            while search.so_far.end <= offset and not search.ended.is_set():
                await search.goes_on.wait()
            if search.so_far.end > offset:
                return search.so_far
            self.known = await search.result()
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
            search.extents = await self._find(search.tell)
        except OSError as error:
            search.error = error
            self._search = None  # who asks next tries anew
        search.ended.set()
        search.wake()
