"""Extents: what is data, what is zero, and lseek(2) on it, against a plain list of one flag a byte."""

from __future__ import annotations

import json
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.extents import (
    HOLE,
    ZERO,
    ExtentMap,
    agreed,
    aligned,
    coarse,
    json_map,
    json_map_size,
    seek_data,
    seek_hole,
)

from ..strategies import PROPERTY

runs = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, HOLE, ZERO, HOLE | ZERO])), max_size=12)


def extent_map(parts: list[tuple[int, int]]) -> ExtentMap:
    extents = ExtentMap()
    extents.append_status([number for part in parts for number in part])
    return extents


def flat(parts: list[tuple[int, int]]) -> list[int]:
    """The flags of each byte."""
    return [flags for length, flags in parts for _ in range(length)]


@PROPERTY
@given(runs)
def test_the_extents_are_the_runs_of_equal_flags(parts: list[tuple[int, int]]) -> None:
    extents = extent_map(parts)
    wanted = [(flags, len(list(run))) for flags, run in groupby(flat(parts))]
    assert [(extent.flags, extent.length) for extent in extents] == wanted
    assert len(extents) == len(wanted)
    assert extents.end == len(flat(parts))
    assert extents.data_bytes == sum(not flags & ZERO for flags in flat(parts))
    assert [extents[number] for number in range(len(extents))] == list(extents)


@PROPERTY
@given(runs, st.data())
def test_a_part_is_cut_out_exactly(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    extents, flags = extent_map(parts), flat(parts)
    stop = data.draw(st.integers(0, len(flags)))
    start = data.draw(st.integers(0, stop))
    cut = list(extents.between(start, stop))
    assert [each.flags for each in cut for _ in range(each.length)] == flags[start:stop]
    assert [each.start for each in cut] == [start + sum(e.length for e in cut[:n]) for n in range(len(cut))]
    if start < stop:
        assert extents.find(start).flags == flags[start]
        assert extents.find(start).start == start


@PROPERTY
@given(runs, st.integers(1, 9))
def test_a_coarse_map_has_only_the_largest_holes(parts: list[tuple[int, int]], most: int) -> None:
    exact = extent_map(parts)
    simplified = coarse(exact, most)
    assert len(simplified) <= max(most, 1)
    assert simplified.end == exact.end
    zero, kept = ([each.is_zero for each in m for _ in range(each.length)] for m in (exact, simplified))
    assert all(was for was, still in zip(zero, kept, strict=True) if still), "no data counts as a hole"
    dropped = [each.length for each in exact if each.is_zero and not kept[each.start]]
    assert all(each.length >= max(dropped, default=0) for each in exact if each.is_zero and kept[each.start])
    if len(exact) <= most:
        assert simplified is exact


@PROPERTY
@given(runs, st.integers(1, 9))
def test_holes_of_whole_units_are_the_largest_within_the_holes(parts: list[tuple[int, int]], unit: int) -> None:
    exact = extent_map(parts)
    rounded = aligned(exact, unit)
    assert rounded.end == exact.end
    was, still = ([each.is_zero for each in m for _ in range(each.length)] for m in (exact, rounded))
    units = [range(start, min(start + unit, exact.end)) for start in range(0, exact.end, unit)]
    assert all(still[n] == all(was[m] for m in each) for each in units for n in each)


@PROPERTY
@given(runs, st.integers(-2, 120))
def test_lseek_finds_data_and_holes_as_lseek_2_says(parts: list[tuple[int, int]], offset: int) -> None:
    extents, zero = extent_map(parts), [bool(flags & ZERO) for flags in flat(parts)]
    size = len(zero)
    inside = 0 <= offset < size
    data = [n for n in range(max(offset, 0), size) if not zero[n]]
    holes = [n for n in range(max(offset, 0), size) if zero[n]]
    assert seek_data(extents, offset) == (data[0] if inside and data else None)
    assert seek_hole(extents, offset) == ((holes[0] if holes else size) if inside else None)


@PROPERTY
@given(runs, st.integers(0, 400), st.integers(0, 400))
def test_any_part_of_the_map_is_that_part_of_its_text(parts: list[tuple[int, int]], offset: int, length: int) -> None:
    extents = extent_map(parts)
    size = json_map_size(extents)
    whole = json_map(extents, 0, size)
    assert len(whole) == size
    assert json_map(extents, offset, length) == whole[offset : offset + length]
    assert json.loads(whole) == [
        {
            "start": extent.start,
            "length": extent.length,
            "depth": 0,
            "present": True,
            "zero": bool(extent.flags & ZERO),
            "data": not extent.flags & HOLE,
        }
        for extent in extents
    ]


@PROPERTY
@given(st.data())
def test_two_maps_agree_on_what_both_say(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 30))
    flags = st.lists(st.sampled_from([0, HOLE, ZERO, HOLE | ZERO]), min_size=size, max_size=size)
    first, second = data.draw(flags), data.draw(flags)
    end = data.draw(st.integers(0, size))
    once, again = (extent_map([(1, flag) for flag in each]) for each in (first, second))
    both = agreed(once, again, end)
    assert [extent.flags for extent in both for _ in range(extent.length)] == [
        a & b for a, b in zip(first[:end], second[:end], strict=True)
    ]
    assert both.end == end


def test_a_million_extents_cost_a_few_megabytes() -> None:
    extents = ExtentMap()
    for _ in range(500_000):
        extents.append_status([65536, 0, 65536, HOLE | ZERO])
    assert len(extents) == 1_000_000
    assert extents._starts.itemsize * len(extents) + len(extents._flags) < 10 << 20
    assert extents.find(65536 * 999_999 + 1).is_zero
    assert seek_data(extents, 65536 * 999_999) is None


def test_what_is_not_known_has_no_extent() -> None:
    with pytest.raises(IndexError):
        ExtentMap()[0]
    assert list(ExtentMap()) == []
    assert json.loads(json_map(ExtentMap(), 0, 100)) == []
