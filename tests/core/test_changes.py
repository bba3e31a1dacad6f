"""Dirty extents: a disk whose changes are not known is dirty from its start to its end, a part at a time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import changes
from snapmount.core.changes import everything
from snapmount.core.extents import HOLE, ZERO, Extent, ExtentMap

from ..strategies import PROPERTY

runs = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, HOLE, ZERO, HOLE | ZERO])), min_size=1, max_size=12)


def looks(extents: ExtentMap, start: int) -> list[changes.Changes]:
    found = []
    while start < extents.end:
        found.append(everything(extents, start))
        assert found[-1].end > start
        start = found[-1].end
    return found


@PROPERTY
@given(runs, st.data())
def test_every_byte_from_there_on_is_dirty_once_and_data_unless_it_is_known_to_be_zero(
    parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    extents = ExtentMap()
    extents.append_status([number for part in parts for number in part])
    start = data.draw(st.integers(0, extents.end - 1))
    found = [extent for look in looks(extents, start) for extent in look.extents]
    is_zero = [each.is_zero for each in extents for _ in range(each.length)]
    assert [each.is_zero for each in found for _ in range(each.length)] == is_zero[start:]
    assert [each.start for each in found] == [start, *(each.end for each in found[:-1])]


@PROPERTY
@given(runs)
def test_neighbours_of_one_look_are_of_different_kinds(parts: list[tuple[int, int]]) -> None:
    extents = ExtentMap()
    extents.append_status([number for part in parts for number in part])
    for look in looks(extents, 0):
        kinds = [each.flags for each in look.extents]
        assert all(kind in (0, HOLE | ZERO) for kind in kinds)
        assert all(a != b for a, b in itertools.pairwise(kinds))


def test_a_look_tells_of_no_more_than_so_many_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_EXTENTS", 2)
    extents = ExtentMap()
    extents.append_status([4, 0, 4, ZERO, 4, HOLE | ZERO, 4, 0, 4, ZERO])
    assert [len(look.extents) for look in looks(extents, 0)] == [2, 2]
    assert everything(extents, 2).extents == (Extent(2, 2, 0), Extent(4, 8, HOLE | ZERO))
