"""A few rounds of the soak; contrib/soak runs many."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..rig import traces, vm
from ..rig.libvirtd import wait_for
from . import soak, stage
from .scene import ANY
from .stories import FAULTS, SUBJECTS

SEED = 3
ROUNDS = 12  # about a sixth of the faults, of each subject some, by each source


@pytest.mark.vm
def test_after_each_fault_all_is_as_before(clean: None) -> None:
    outcomes = soak.soak([soak.Round.of(SEED, number) for number in range(1, ROUNDS + 1)], lambda outcome: None)
    problems = [f"{outcome.line()}\n{outcome.problem}" for outcome in outcomes if outcome.problem]
    assert not problems, "\n".join(problems)
    assert sum(outcome.reads for outcome in outcomes) > 100


@pytest.mark.vm
def test_a_soak_that_a_signal_ends_leaves_nothing_also_of_one_that_was_killed(clean: None) -> None:
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        command = [sys.executable, "-m", "tests.faults.soak", "--rounds", "2000", "--fault", "the server gets sigterm"]
        of_killed = _records()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as soaking:
            wait_for(lambda: _records() - of_killed, "a round has begun", 2 * vm.BOOT_S)  # noqa: B023
            soaking.send_signal(number)
            assert soaking.wait(120) == code
        assert bool(_left()) == (number == signal.SIGKILL)


def _records() -> set[Path]:
    return set(traces.records())


def _left() -> list[object]:
    """The soak's VMs and directories."""
    directories = [*vm.IMAGES.glob(f"{stage.GUEST}-*"), *Path("/var/tmp").glob(f"{stage.GUEST}-*")]
    vms = [name for name in (stage.GUEST, stage.HELPER) if not vm.VM(name, Path()).virsh_fails("domstate", name)]
    return [*directories, *vms]


def test_a_round_follows_from_the_seed_and_its_number_and_all_faults_and_subjects_come_in_turn() -> None:
    rounds = [soak.Round.of(SEED, number) for number in range(1, len(FAULTS) + 1)]
    assert rounds == [soak.Round.of(SEED, each.number) for each in rounds]
    assert {each.fault for each in rounds} == set(FAULTS)
    assert all(each.source in each.fault.sources for each in rounds)
    assert {each.source for each in rounds[:ROUNDS]} == set(ANY)
    for subject in SUBJECTS:
        assert {each.fault for each in rounds[:ROUNDS]} & set(subject.FAULTS)
    assert rounds[0].chance().random() == rounds[0].chance().random() != rounds[1].chance().random()
