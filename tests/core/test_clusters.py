"""Runs of numbers, and clusters from extents, against plain lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.clusters import Clusters, Runs

from ..strategies import PROPERTY

# how far each run begins behind the last one's end, or before it, and its length
steps = st.lists(st.tuples(st.integers(-3, 4), st.integers(0, 5)), max_size=12)
DATA, ZERO, ABSENT = "data", "zero", "absent"
parts = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([DATA, ZERO, ABSENT])), max_size=12)


def runs_of(steps: list[tuple[int, int]]) -> tuple[Runs, list[int]]:
    runs, numbers = Runs(), set[int]()
    start = 0
    for step, length in steps:
        start = max(0, start + step)
        runs.add(start, start + length)
        numbers |= set(range(max(start, max(numbers, default=-1) + 1), start + length))
        start += length
    return runs, sorted(numbers)


@PROPERTY
@given(steps)
def test_runs_are_a_set_of_numbers(steps: list[tuple[int, int]]) -> None:
    runs, numbers = runs_of(steps)
    assert len(runs) == len(numbers)
    assert [first + n for first, length in runs.runs() for n in range(length)] == numbers
    firsts = [first for first, _ in runs.runs()]
    assert all(first - 1 not in numbers for first in firsts), "neighbours are of one run"


@PROPERTY
@given(steps, st.integers(0, 40), st.integers(0, 40))
def test_those_of_a_range_are_found_with_their_ranks(steps: list[tuple[int, int]], start: int, stop: int) -> None:
    runs, numbers = runs_of(steps)
    found = [(first + n, rank + n) for first, length, rank in runs.between(start, stop) for n in range(length)]
    assert found == [(number, rank) for rank, number in enumerate(numbers) if start <= number < stop]


@PROPERTY
@given(steps, st.data())
def test_those_of_some_ranks_are_found(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    runs, numbers = runs_of(steps)
    stop = data.draw(st.integers(0, len(numbers)))
    start = data.draw(st.integers(0, stop))
    assert [first + n for first, length in runs.of_ranks(start, stop) for n in range(length)] == numbers[start:stop]


@PROPERTY
@given(parts, st.integers(1, 9))
def test_a_cluster_is_zero_only_if_all_of_it_is_and_data_if_any_of_it_is(
    parts: list[tuple[int, str]], unit: int
) -> None:
    flat = [kind for length, kind in parts for _ in range(length)]
    clusters, offset = Clusters(len(flat), unit), 0
    for length, kind in parts:
        if kind == DATA:
            clusters.add_data(offset, offset + length)
        if kind == ZERO:
            clusters.add_zeros(offset, offset + length)
        offset += length
    clusters.finish()
    cut = [set(flat[start : start + unit]) for start in range(0, len(flat), unit)]
    assert clusters.total == len(cut)
    assert numbers(clusters.zero) == [n for n, kinds in enumerate(cut) if kinds == {ZERO}]
    assert numbers(clusters.data) == [n for n, kinds in enumerate(cut) if kinds not in ({ZERO}, {ABSENT})]


def numbers(runs: Runs) -> list[int]:
    return [first + n for first, length in runs.runs() for n in range(length)]
