"""A few rounds of the soak; contrib/soak runs many."""

from __future__ import annotations

import pytest

from . import soak
from .stories import FAULTS, SUBJECTS

SEED = 8
ROUNDS = 12  # about a fifth of the faults, of each subject some


@pytest.mark.vm
def test_after_each_fault_all_is_as_before(clean: None) -> None:
    outcomes = soak.soak([soak.Round.of(SEED, number) for number in range(1, ROUNDS + 1)], lambda outcome: None)
    problems = [f"{outcome.line()}\n{outcome.problem}" for outcome in outcomes if outcome.problem]
    assert not problems, "\n".join(problems)
    assert sum(outcome.reads for outcome in outcomes) > 100


def test_a_round_follows_from_the_seed_and_its_number_and_all_faults_and_subjects_come_in_turn() -> None:
    rounds = [soak.Round.of(SEED, number) for number in range(1, len(FAULTS) + 1)]
    assert rounds == [soak.Round.of(SEED, each.number) for each in rounds]
    assert {each.fault for each in rounds} == set(FAULTS)
    for subject in SUBJECTS:
        assert {each.fault for each in rounds[:ROUNDS]} & set(subject.FAULTS)
    assert rounds[0].chance().random() == rounds[0].chance().random() != rounds[1].chance().random()
