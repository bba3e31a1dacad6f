"""The life of a snapshot: which state follows which, and that why it is in one is never forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.lifecycle import State

from ..rig.records import a_record
from ..strategies import PROPERTY

# All that may happen: the rest may not.
WAYS = {
    ("starting", "active"), ("starting", "ending"), ("starting", "leftover"),
    ("active", "active"), ("active", "lost"), ("active", "gave up"), ("active", "ending"), ("active", "leftover"),
    ("lost", "lost"), ("lost", "ending"), ("lost", "leftover"),
    ("gave up", "ending"), ("gave up", "leftover"),
    ("ending", "ending"), ("ending", "leftover"),
    ("leftover", "leftover"),
}  # fmt: skip


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_a_state_is_followed_by_those_that_may_follow_it(before: State, after: State) -> None:
    if (before.value, after.value) in WAYS:
        before.check_next(after)
    else:
        with pytest.raises(ValueError, match=f"'{before.value}' does not become '{after.value}'"):
            before.check_next(after)


def test_what_has_begun_to_end_ends() -> None:
    for state in (State.LOST, State.GAVE_UP, State.ENDING, State.LEFTOVER):
        with pytest.raises(ValueError, match="does not become"):
            state.check_next(State.ACTIVE)


def test_nobody_records_that_a_snapshot_is_dead() -> None:
    for state in State:
        with pytest.raises(ValueError, match="does not become 'dead'"):
            state.check_next(State.DEAD)


@PROPERTY
@given(notes=st.lists(st.tuples(st.sampled_from(State), st.none() | st.text(min_size=1)), max_size=8))
def test_a_reason_that_was_noted_is_never_erased(notes: list[tuple[State, str | None]]) -> None:
    record = a_record()
    for state, why in notes:
        before = record
        record = replace(record, **record.noted(state, why))
        assert record.reason or not before.reason
        if why:
            assert why in str(record.why)


def test_what_could_not_be_undone_is_told_beside_why_it_was_lost() -> None:
    record = a_record()
    for state, why in ((State.LOST, "vm1 was destroyed"), (State.ENDING, None), (State.LEFTOVER, "/x is busy")):
        record = replace(record, **record.noted(state, why))
    assert record.why == "/x is busy; before that: vm1 was destroyed"
