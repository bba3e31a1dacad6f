"""What a story is: one thing that can go wrong with a snapshot, from the take to the end of the snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..scene import PULL, Scene

TAKE_MS = 1500  # what taking a snapshot takes about
PAUSE_MS = 1500


@dataclass(frozen=True)
class Fault:
    """A story, whether the guest's program lives on after it, and by which sources the snapshot may be taken."""

    story: Callable[[Scene], None]
    spares_guest: bool = True
    sources: tuple[str, ...] = (PULL,)

    @property
    def name(self) -> str:
        """The story's, in words."""
        return self.story.__name__.replace("_", " ")
