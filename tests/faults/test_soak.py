"""A few rounds of the soak; contrib/soak runs many."""

from __future__ import annotations

import pytest

from . import soak
from .stories import FAULTS

SEED = 6
ROUNDS = 6


@pytest.mark.vm
def test_after_each_fault_all_is_as_before(clean: None) -> None:
    outcomes = soak.soak([soak.Round.of(SEED, number) for number in range(1, ROUNDS + 1)], lambda outcome: None)
    problems = [f"{outcome.line()}\n{outcome.problem}" for outcome in outcomes if outcome.problem]
    assert not problems, "\n".join(problems)
    assert sum(outcome.reads for outcome in outcomes) > 100


def test_a_round_follows_from_the_seed_and_its_number_and_each_fault_comes_in_turn() -> None:
    rounds = [soak.Round.of(SEED, number) for number in range(1, len(FAULTS) + 1)]
    assert rounds == [soak.Round.of(SEED, each.number) for each in rounds]
    assert {each.fault for each in rounds} == set(FAULTS)
    assert rounds[0].chance().random() == rounds[0].chance().random() != rounds[1].chance().random()
