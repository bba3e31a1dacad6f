"""How fast the space goes that a snapshot takes, and how much must be left when it is given up for the guest's sake."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from . import limits, units

SMOOTHING_S = 2.0  # a fill rate is that of the last few of these
REACTION_S = 3.0  # in which a snapshot is given up, also on a busy host: measured are 0.1 s
BURST_BYTES_PER_S = units.GIB  # what a guest that has been idle may begin with
LONGEST_WAIT_S, SHORTEST_WAIT_S = 1.0, 0.02


@dataclass(frozen=True)
class Rate:
    """How fast a number of bytes grows: its growth in the past, the older the less it counts.

    An exponential average over time, not over samples: how often one looks makes no difference.
    """

    bytes_per_s: float
    at_s: float  # of a clock that never steps
    total: int

    @classmethod
    def begin(cls, at_s: float, total: int) -> Rate:
        """Nothing has grown yet."""
        return cls(0.0, at_s, total)

    def after(self, at_s: float, total: int) -> Rate:
        """The rate when there are `total` bytes now; what shrinks does not grow."""
        passed = at_s - self.at_s
        if passed <= 0:
            return self
        now = max(0, total - self.total) / passed
        share = -math.expm1(-passed / SMOOTHING_S)
        return Rate(self.bytes_per_s + share * (now - self.bytes_per_s), at_s, total)


@dataclass(frozen=True)
class Pool:
    """A place that space is taken from: a file system, a block device, a pool of such."""

    name: str
    free: int  # bytes
    remaining: int  # bytes that the snapshot may still take from it at most
    bytes_per_s: float  # how fast it fills up, whoever fills it
    floor: int = limits.FLOOR_BYTES  # what must be free however slowly it fills up

    @property
    def reserve(self) -> int:
        """The bytes that must stay free: what fills up until the snapshot is given up, but no more than it can take."""
        return min(max(self.floor, math.ceil(self.bytes_per_s * REACTION_S)), self.remaining)

    @property
    def headroom(self) -> int | None:
        """What may still be taken; None if it is enough for all that can come."""
        return None if self.free >= self.remaining + self.floor else self.free - self.reserve

    @property
    def is_nearly_full(self) -> bool:
        """Whether a guest that an error has stopped has stopped for this."""
        return self.free < self.floor


def wait_s(headroom: int | None, pools: Iterable[Pool]) -> float:
    """How long one may look away: till a fraction of the room is used, also where the guest begins anew."""
    if headroom is None:
        return LONGEST_WAIT_S
    fastest = max([BURST_BYTES_PER_S, *(pool.bytes_per_s for pool in pools)])
    return min(max(headroom / fastest / 4, SHORTEST_WAIT_S), LONGEST_WAIT_S)
