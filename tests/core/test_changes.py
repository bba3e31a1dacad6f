"""Dirty extents: a disk whose changes are not known is dirty from its start to its end, a part at a time; in whichever
parts they are told, those that touch are one.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import changes
from snapmount.core.changes import ChangeMap, Changes, Joined, everything
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


# What each byte is, and where looks end: at any place, as after a number of extents or of bytes.
DATA, KNOWN_ZERO, CLEAN = range(3)
kinds = st.lists(st.sampled_from([DATA, KNOWN_ZERO, CLEAN]), min_size=1, max_size=40)


def told(disk: list[int], ends: list[int]) -> list[Changes]:
    """A disk as looks tell of it that end there."""
    found = []
    for start, end in itertools.pairwise([0, *sorted({min(end, len(disk)) for end in ends} | {len(disk)})]):
        extents, at = list[Extent](), start
        for kind, run in itertools.groupby(disk[start:end]):
            length = len(list(run))
            if kind != CLEAN:
                extents.append(Extent(at, length, HOLE | ZERO if kind == KNOWN_ZERO else 0))
            at += length
        found.append(Changes(end, tuple(extents)))
    return found


def runs_of(disk: list[int]) -> list[tuple[int, int, bool]]:
    """Start, length and whether it is zero of each dirty extent."""
    found, at = [], 0
    for kind, run in itertools.groupby(disk):
        length = len(list(run))
        if kind != CLEAN:
            found.append((at, length, kind == KNOWN_ZERO))
        at += length
    return found


@PROPERTY
@given(kinds, st.lists(st.integers(1, 40)))
def test_extents_are_whole_wherever_looks_end(disk: list[int], ends: list[int]) -> None:
    joined, found = Joined(), list[Extent]()
    for look in told(disk, ends):
        found += joined.add(look)
        assert not [each for each in found if each.end > look.end]
    found += joined.rest()
    assert [(each.start, each.length, each.is_zero) for each in found] == runs_of(disk)
    assert joined.rest() == []


def test_an_extent_is_told_as_soon_as_its_end_is_known() -> None:
    joined = Joined()
    assert joined.add(Changes(100, (Extent(0, 10, 0),))) == [Extent(0, 10, 0)]
    assert joined.add(Changes(200, (Extent(150, 50, 0),))) == []
    assert joined.add(Changes(300, ())) == [Extent(150, 50, 0)]


@PROPERTY
@given(kinds, st.lists(st.integers(1, 40)))
def test_a_map_has_the_same_extents_by_number(disk: list[int], ends: list[int]) -> None:
    found = ChangeMap()
    for look in told(disk, ends):
        found.add(look)
        assert found.end == look.end
    numbered = [found[number] for number in range(len(found))]
    assert [(each.start, each.length, each.is_zero) for each in numbered] == runs_of(disk)
