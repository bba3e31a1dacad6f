"""What has changed, by the answers of an NBD server: dirty first, what is allocated only where it is dirty."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.extents import HOLE, ZERO
from snapmount.errors import UnreachableError
from snapmount.images import bitmap
from snapmount.images.bitmap import Bitmap, Question, Range

from ..strategies import PROPERTY

KIB = 1 << 10
CONTEXT = "qemu:dirty-bitmap:backup-vda"


class Server:
    """Answers questions about a disk, of which each byte has a flag; a few extents at once."""

    def __init__(self, flags: Sequence[int], extents_at_once: int = 3) -> None:
        self._flags = flags
        self._at_once = extents_at_once
        self.asked: list[Range] = []
        self.handed_over = 0

    def _status(self, offset: int, length: int) -> list[int]:
        self.asked.append((offset, offset + length))
        told: list[int] = []
        while offset < len(self._flags) and len(told) < 2 * self._at_once:
            end = offset
            while end < len(self._flags) and self._flags[end] == self._flags[offset]:
                end += 1
            told += [end - offset, self._flags[offset]]  # the last one may go on beyond what was asked for
            offset = end
        return told

    async def statuses(self, questions: Sequence[Question]) -> list[list[int]]:
        self.handed_over += 1
        return [self._status(*question) for question in questions]

    async def statuses_twice(self, questions: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
        return [*zip(await self.statuses(questions), await self.statuses(questions), strict=True)]


async def changes(dirty: Server, allocation: Server, size: int, known: int) -> list[tuple[int, int, bool]]:
    """All looks at a disk: each dirty extent's start, end and whether it is zero."""
    place, found = 0, []
    while place < size:
        end, ranges = await bitmap.dirty_ranges(dirty.statuses, Bitmap(CONTEXT, known), place, size)
        assert end > place
        look = await bitmap.kinds(allocation.statuses_twice, end, ranges)
        assert look.end == end
        found += [(each.start, each.end, each.is_zero) for each in look.extents]
        place = end
    return found


bits = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@PROPERTY
@given(bits, st.data())
async def test_each_byte_is_told_as_the_server_tells_it(dirty: list[int], data: st.DataObject) -> None:
    size, known = len(dirty), data.draw(st.integers(0, len(dirty) + 5))
    kinds = data.draw(st.lists(st.sampled_from([0, HOLE, HOLE | ZERO]), min_size=size, max_size=size))
    found = await changes(Server(dirty), Server(kinds), size, known)
    told: list[bool | None] = [None] * size
    for start, end, is_zero in found:
        told[start:end] = [is_zero] * (end - start)
    expected = [
        bool(kind & ZERO) if is_dirty or place >= known else None
        for place, (is_dirty, kind) in enumerate(zip(dirty, kinds, strict=True))
    ]
    assert told == expected
    assert found == sorted(found)


async def test_nothing_is_asked_of_the_allocation_where_all_is_clean() -> None:
    allocation = Server([0] * 100)
    assert await changes(Server([0] * 100), allocation, 100, 100) == []
    assert allocation.asked == []


async def test_what_is_near_is_asked_for_at_once_and_what_is_far_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap, "NEAR_BYTES", 10)
    allocation = Server([0] * 100)
    dirty = [int(place in (0, 5, 50)) for place in range(100)]
    assert await changes(Server(dirty), allocation, 100, 100) == [(0, 1, False), (5, 6, False), (50, 51, False)]
    assert set(allocation.asked) == {(0, 6), (50, 51)}


async def test_questions_are_handed_over_some_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap, "MOST_BYTES", 1)
    monkeypatch.setattr(bitmap, "NEAR_BYTES", 0)
    size = 400
    dirty, allocation = Server([int(place % 20 == 0) for place in range(size)]), Server([0] * size)
    assert len(await changes(dirty, allocation, size, size)) == 20
    assert len(dirty.asked) == size
    assert dirty.handed_over == 29, "1, 2, 4, 8, then 16 at once"
    assert allocation.handed_over == 4, "16 and 4, twice each"


async def test_what_follows_an_answer_to_a_part_of_its_question_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bitmap, "MOST_BYTES", 10)
    dirty = Server([int(place % 2 == 0) for place in range(60)], extents_at_once=4)
    assert len(await changes(dirty, Server([0] * 60), 60, 60)) == 30


async def test_a_look_tells_of_so_many_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap, "ENOUGH_RANGES", 1)
    server = Server([0, 1] * 20)
    end, ranges = await bitmap.dirty_ranges(server.statuses, Bitmap(CONTEXT, 40), 0, 40)
    assert end < 40
    assert ranges[0] == (1, 2)
    dirty, allocation = Server([0, 1] * 20), Server([0] * 40)
    assert len(await changes(dirty, allocation, 40, 40)) == 20


async def test_an_answer_that_says_nothing_is_an_error() -> None:
    async def nothing(questions: Sequence[Question]) -> list[list[int]]:
        return [[] for _ in questions]

    with pytest.raises(UnreachableError, match="tells nothing"):
        await bitmap.dirty_ranges(nothing, Bitmap(CONTEXT, 10), 0, 10)
