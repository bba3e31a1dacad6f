"""How fast space goes, and how much must be left of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.filling import Pool, Rate
from snapmount.core.limits import FLOOR_BYTES
from snapmount.core.units import GIB, MIB

from ..strategies import PROPERTY

sizes = st.integers(min_value=0, max_value=1 << 50)
seconds = st.floats(min_value=0.001, max_value=1000)


def pool(free: int, remaining: int = 100 * GIB, bytes_per_s: float = 0.0) -> Pool:
    return Pool("/scratch", free, remaining, bytes_per_s)


@PROPERTY
@given(st.lists(st.tuples(seconds, sizes), min_size=1))
def test_a_rate_is_never_negative_nor_above_the_fastest_growth(steps: list[tuple[float, int]]) -> None:
    rate, fastest = Rate.begin(0, 0), 0.0
    for passed, total in steps:
        fastest = max(fastest, (total - rate.total) / passed)
        rate = rate.after(rate.at_s + passed, total)
        assert 0 <= rate.bytes_per_s <= fastest * 1.001 + 1


@PROPERTY
@given(st.integers(min_value=0, max_value=1 << 30), st.integers(min_value=1, max_value=50))
def test_how_often_one_looks_makes_no_difference(bytes_per_step: int, looks: int) -> None:
    often = Rate.begin(0, 0)
    for step in range(1, looks + 1):
        often = often.after(step / 8, step * bytes_per_step)
    once = Rate.begin(0, 0).after(looks / 8, looks * bytes_per_step)
    assert often.bytes_per_s == pytest.approx(once.bytes_per_s)


def test_the_rate_follows_what_happens_and_forgets_what_has_been() -> None:
    rate = Rate.begin(0, 0).after(60, 60 * GIB)
    assert rate.bytes_per_s == pytest.approx(GIB)
    assert rate.after(120, 60 * GIB).bytes_per_s < 1
    assert Rate.begin(0, 0).after(0.05, 50 * MIB).bytes_per_s < 30 * MIB, "a moment's burst is no rate"


def test_a_clock_that_stands_still_changes_nothing() -> None:
    rate = Rate.begin(5, 0)
    assert rate.after(5, GIB) == rate


def test_the_reserve_grows_with_the_rate_but_not_beyond_what_can_still_come() -> None:
    assert pool(GIB).reserve == FLOOR_BYTES
    assert pool(GIB, bytes_per_s=GIB).reserve == 3 * GIB
    assert pool(GIB, remaining=MIB, bytes_per_s=GIB).reserve == MIB
    assert pool(0, remaining=0, bytes_per_s=GIB).reserve == 0


def test_a_small_place_has_a_small_reserve() -> None:
    metadata = Pool("the metadata of vg/pool", 6 * MIB, 8 * MIB, 0.0, floor=2 * MIB)
    assert metadata.reserve == 2 * MIB
    assert metadata.headroom == 4 * MIB
    assert not metadata.is_nearly_full
