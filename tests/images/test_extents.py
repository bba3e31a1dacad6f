"""The extents of an image are found out once for all who ask, some of whom take them as they are found."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snapmount.core.extents import HOLE, ZERO, Extent, ExtentMap
from snapmount.images.extents import Extents, Tell


class Search:
    """Finds an extent of ten bytes each time that it may."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.may_go_on, self._may_take = trio.open_memory_channel[None](100)
        self.fails_at = fails_at
        self.calls = 0

    async def find(self, tell: Tell) -> ExtentMap:
        self.calls += 1
        extents = ExtentMap()
        for number in range(3):
            await self._may_take.receive()
            if number == self.fails_at:
                raise OSError(errno.EIO, "lost")
            extents.append(10, HOLE | ZERO if number % 2 else 0)
            tell(extents)
        return extents


async def test_who_wants_some_of_them_does_not_wait_for_all(nursery: trio.Nursery) -> None:
    search = Search()
    extents = Extents(nursery, search.find)
    search.may_go_on.send_nowait(None)
    found = await extents.beyond(5)
    assert list(found) == [Extent(0, 10, 0)]
    assert await extents.beyond(0) is found
    later: list[ExtentMap] = []

    async def ask(offset: int) -> None:
        later.append(await extents.beyond(offset))

    nursery.start_soon(ask, 25)
    nursery.start_soon(ask, 10)
    await wait_all_tasks_blocked()
    assert later == []
    search.may_go_on.send_nowait(None)
    await wait_all_tasks_blocked()
    assert [each.end for each in later] == [20]
    search.may_go_on.send_nowait(None)
    assert (await extents.all()).end == 30
    await wait_all_tasks_blocked()
    assert len(later) == 2
    assert (await extents.beyond(29)).end == 30
    assert search.calls == 1


async def test_what_cannot_be_found_is_an_error_for_all_who_wait_and_looked_for_anew(nursery: trio.Nursery) -> None:
    search = Search(fails_at=1)
    extents = Extents(nursery, search.find)
    search.may_go_on.send_nowait(None)
    assert (await extents.beyond(0)).end == 10
    failures: list[str] = []

    async def ask() -> None:
        with pytest.raises(OSError, match="lost"):
            await extents.beyond(10)
        failures.append("lost")

    for _ in range(2):
        nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    search.may_go_on.send_nowait(None)
    await wait_all_tasks_blocked()
    assert len(failures) == 2
    search.fails_at = None
    for _ in range(3):
        search.may_go_on.send_nowait(None)
    assert (await extents.beyond(10)).end > 10
    assert (await extents.all()).end == 30
    assert search.calls == 2
