"""The life of a snapshot: its states, which one may follow which, and what holds in each.  All of that stands here, and
nowhere else; record.py enforces it where a record changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    """The state of a snapshot."""

    STARTING = "starting"  # being made
    ACTIVE = "active"  # the view is readable
    LOST = "lost"  # the point in time can no longer be served: reads fail with EIO
    GAVE_UP = "gave up"  # the same, by ourselves: before the guest would have suffered
    ENDING = "ending"  # being undone
    LEFTOVER = "leftover"  # something could not be undone
    DEAD = "dead"  # derived, never recorded: no process serves it any more

    @property
    def was_readable(self) -> bool:
        """Whether users have seen the view, and not ended it: they say what becomes of it."""
        return self in (State.ACTIVE, State.LOST, State.GAVE_UP)

    @property
    def is_alive(self) -> bool:
        """Whether it is being made, or can be read."""
        return self in (State.STARTING, State.ACTIVE)

    def check_next(self, state: State) -> None:
        """Raise ValueError if that state may not follow."""
        if state not in _NEXT[self]:
            raise ValueError(f"a snapshot that is {self.value!r} does not become {state.value!r}")


# ACTIVE follows itself when another process takes the snapshot over, LOST when its reason is known better, ENDING and
# LEFTOVER with each further try.
_NEXT: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset({State.ACTIVE, State.ENDING, State.LEFTOVER}),
    State.ACTIVE: frozenset({State.ACTIVE, State.LOST, State.GAVE_UP, State.ENDING, State.LEFTOVER}),
    State.LOST: frozenset({State.LOST, State.ENDING, State.LEFTOVER}),
    State.GAVE_UP: frozenset({State.ENDING, State.LEFTOVER}),
    State.ENDING: frozenset({State.ENDING, State.LEFTOVER}),
    State.LEFTOVER: frozenset({State.LEFTOVER}),
    State.DEAD: frozenset(),
}
