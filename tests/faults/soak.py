"""contrib/soak: round after round of a snapshot, readers, one fault and the end; after each, all must be as before.

A round's fault and all that chance decides follow from the seed and the round's number, so that a round can be run
again; what a fault then meets also depends on how fast the host is.  What must hold after each round: whatever was read
is of the snapshot's moment (tests/rig/prefix.py), the guest goes on without an error, and the host shows no trace.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from ..rig import libvirtd, signals, traces
from ..rig.command import snapmount, snapmount_json
from ..rig.libvirtd import wait_for
from .scene import ANY, VIEWS, Scene
from .stage import GONE_S, Stage, remove_left_over
from .stories import FAULTS, SUBJECTS
from .stories.fault import Fault

NAME_WIDTH = max(len(fault.name) for fault in FAULTS)
SOURCE_WIDTH = max(map(len, ANY))


@dataclass(frozen=True)
class Round:
    """What a round is to do."""

    number: int
    seed: int
    fault: Fault
    views: tuple[str, ...]
    source: str

    @classmethod
    def of(cls, seed: int, number: int) -> Round:
        """The round of that number, from 1 on: in each len(FAULTS) rounds every fault comes once, and in some of them
        each subject as often as it should.
        """
        turn, place = divmod(number - 1, len(FAULTS))
        fault = _spread(Random(f"{seed}: turn {turn}"))[place]
        views = Random(f"{seed}: views of round {number}").choice(VIEWS)
        return cls(number, seed, fault, views, Random(f"{seed}: source of round {number}").choice(fault.sources))

    def chance(self) -> Random:
        return Random(f"{self.seed}: round {self.number}")


def _spread(chance: Random) -> list[Fault]:
    """All faults in an order of chance, those of each subject spread evenly."""
    places = {}
    for subject in SUBJECTS:
        for number, fault in enumerate(chance.sample(subject.FAULTS, len(subject.FAULTS))):
            places[fault] = (number + chance.random()) / len(subject.FAULTS)
    return sorted(places, key=places.__getitem__)


@dataclass(frozen=True)
class Outcome:
    """How a round has ended."""

    round: Round
    problem: str  # '' for none
    proven: int  # S: what was read is of the moment after the guest's writes 1..S; 0 if nothing was read
    reads: int
    refused: int  # reads
    longest_write_us: int  # of the guest
    seconds: float

    def line(self) -> str:
        """What is printed of the round."""
        proof = f"{self.reads:5} reads are of S={self.proven}" if self.reads else "nothing was read"
        views, took_ms = "+".join(self.round.views), self.longest_write_us / 1000
        return (
            f"{self.round.number:4}  seed {self.round.seed}  {self.round.fault.name:{NAME_WIDTH}}  {views:10}  "
            f"{self.round.source:{SOURCE_WIDTH}}  "
            f"{proof:28}  {self.refused:4} refused  longest write {took_ms:5.0f} ms  {self.seconds:5.1f} s  "
            f"{'FAILED' if self.problem else 'ok'}"
        )


class Soak:
    """Rounds on one stage."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stage = Stage(stack)

    def play(self, this: Round) -> Outcome:
        """Play the round.  Raises RuntimeError if the host cannot be brought back to what it was."""
        begin, told = time.monotonic(), len(self._stage.guest.output())
        scene = Scene(self._stage, this.chance(), this.views, this.source)
        reads, problem, proven = 0, "", 0
        try:
            this.fault.story(scene)
            pieces = scene.stop_reading()
            reads = len(pieces)
            proven = self._stage.replay.prove(pieces) if pieces else 0
            self._stage.check(guest_lives=this.fault.spares_guest)
            self._stage.replay.prove(scene.origin)
        except Exception:
            problem = f"{traceback.format_exc()}\n{_logs()}"
        except SystemExit:
            self._clean_up(scene, "a signal has ended it")
            raise
        output = self._stage.guest.output()[told:]
        longest = max((int(us) for us in re.findall(r"longest_us=(\d+)", output)), default=0)
        if problem:
            self._clean_up(scene, problem)
        if problem or not this.fault.spares_guest:
            self._stage.make_guest()
        self._stage.rest()
        return Outcome(this, problem, proven, reads, scene.refused, longest, time.monotonic() - begin)

    def _clean_up(self, scene: Scene, problem: str) -> None:
        with contextlib.suppress(Exception):
            scene.end_commands()
        with contextlib.suppress(Exception):
            scene.stop_reading()
        for snapshot in snapmount_json("list"):
            snapmount("delete", "--force", snapshot["id"], check=False)
        snapmount("recover", check=False)
        self._stage.drop_helper()
        with contextlib.suppress(TimeoutError):  # a command that was killed is undone by others
            wait_for(lambda: not traces.found(), "no trace is left", GONE_S)
        left = traces.found()
        if left:
            raise RuntimeError(f"the round has left what delete does not remove: {left}\n{problem}")


def _logs() -> str:
    """The ends of the logs of servers that are left."""
    directories = [record.parent for record in traces.records()]
    logs = [log for directory in directories for log in (directory / "log", directory / "tgtd.log") if log.exists()]
    return "".join(f"{log}:\n{log.read_text(errors='replace')[-4000:]}\n" for log in logs)


def soak(rounds: Sequence[Round], report: Callable[[Outcome], None]) -> list[Outcome]:
    """Play the rounds; libvirt runs already."""
    outcomes = []
    with contextlib.ExitStack() as stack:
        played = Soak(stack)
        for this in rounds:
            outcome = played.play(this)
            report(outcome)
            outcomes.append(outcome)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The figures of each fault, a line each, and of all."""
    yield f"{'fault':{NAME_WIDTH}}  rounds  failed  with reads    reads  refused  longest write  seconds"
    by_fault = {fault.name: [each for each in outcomes if each.round.fault is fault] for fault in FAULTS}
    for name, of_fault in [*by_fault.items(), ("all", list(outcomes))]:
        if of_fault:
            yield (
                f"{name:{NAME_WIDTH}}  {len(of_fault):6}  {sum(bool(each.problem) for each in of_fault):6}  "
                f"{sum(bool(each.reads) for each in of_fault):10}  {sum(each.reads for each in of_fault):7}  "
                f"{sum(each.refused for each in of_fault):7}  "
                f"{max(each.longest_write_us for each in of_fault) / 1000:10.0f} ms  "
                f"{sum(each.seconds for each in of_fault) / len(of_fault):7.1f}"
            )


def main() -> int:
    """Run it; 0 where every round was as it must be, else 1."""
    parser = argparse.ArgumentParser(prog="contrib/soak", description=__doc__.split("\n\n")[1] if __doc__ else None)
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=len(FAULTS), help="default: %(default)s, each fault once"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--first", metavar="N", type=int, default=1, help="the number of the first round, to run one again"
    )
    parser.add_argument("--fault", metavar="TEXT", default="", help="only the rounds whose fault's name has TEXT in it")
    parser.add_argument(
        "--source", choices=ANY, action="append", help="only the rounds whose snapshot is taken by it (repeatable)"
    )
    wanted = parser.parse_args()
    numbers = range(wanted.first, wanted.first + wanted.rounds)
    rounds = [
        each
        for each in (Round.of(wanted.seed, number) for number in numbers)
        if wanted.fault in each.fault.name and each.source in (wanted.source or ANY)
    ]
    with signals.clearing_up(), libvirtd.running():
        remove_left_over()
        outcomes = soak(rounds, tell)
    print()
    for line in table(outcomes):
        print(line)
    return int(any(outcome.problem for outcome in outcomes))


def tell(outcome: Outcome) -> None:
    print(outcome.line(), flush=True)
    if outcome.problem:
        print(outcome.problem, flush=True)


if __name__ == "__main__":
    sys.exit(main())
