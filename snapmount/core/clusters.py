"""Which clusters of a disk an image file holds: as data, or as known zeros.

Kept as runs in flat arrays, sixteen bytes a run, so that a disk with a million extents costs a few megabytes.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from .extents import ZERO, ExtentMap


class Runs:
    """A set of whole numbers, each with its rank: how many smaller ones there are.  It grows at its end only."""

    def __init__(self) -> None:
        self.end = 0  # the largest, plus one
        self._firsts = array("Q")
        self._ranks = array("Q")  # of the firsts
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def arrays(self) -> tuple[array[int], array[int]]:
        """The first number of each run, and its rank; a set that others look into so must grow no more."""
        return self._firsts, self._ranks

    def add(self, start: int, stop: int) -> None:
        """Add the numbers [start, stop), none smaller than those before; those that are there already count once."""
        if start < self.end:
            start = self.end
        if start >= stop:
            return
        if start > self.end or not self._count:
            self._firsts.append(start)
            self._ranks.append(self._count)
        self._count += stop - start
        self.end = stop

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The runs of the numbers in [start, stop): first, length, rank of the first."""
        number = max(0, bisect_right(self._firsts, start) - 1)
        while number < len(self._firsts) and self._firsts[number] < stop:
            first, rank = self._firsts[number], self._ranks[number]
            end = min(first + self._rank_after(number) - rank, stop)
            skipped = max(0, start - first)
            if first + skipped < end:
                yield first + skipped, end - first - skipped, rank + skipped
            number += 1

    def runs(self) -> Iterator[tuple[int, int]]:
        """All runs: first, length."""
        for number, first in enumerate(self._firsts):
            yield first, self._rank_after(number) - self._ranks[number]

    def of_ranks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The numbers with these ranks, of which there must be so many, as runs: first, length."""
        number = bisect_right(self._ranks, start) - 1
        while start < stop:
            end = min(self._rank_after(number), stop)
            yield self._firsts[number] + start - self._ranks[number], end - start
            start = end
            number += 1

    def _rank_after(self, number: int) -> int:
        return self._ranks[number + 1] if number + 1 < len(self._ranks) else self._count


class Clusters:
    """The clusters of a disk that an image file holds.

    A cluster of which any part is data is data as a whole; so is one of which only a part is known zeros, since what it
    has beside them is in no other place of the file.
    """

    def __init__(self, size_bytes: int, cluster_bytes: int) -> None:
        self.size_bytes = size_bytes  # of the disk
        self.cluster_bytes = cluster_bytes
        self.data = Runs()
        self.zero = Runs()
        self._zeros: tuple[int, int] | None = None  # the last extent, whose next one may continue it

    @classmethod
    def of_data(cls, extents: ExtentMap, cluster_bytes: int) -> Clusters:
        """Those of all data of a disk; what is zero is in no cluster."""
        clusters = cls(extents.end, cluster_bytes)
        starts, flags = extents.arrays()
        borders = itertools.pairwise(itertools.chain(starts, [extents.end]))
        for (start, end), flag in zip(borders, flags, strict=True):
            if not flag & ZERO:
                clusters.add_data(start, end)
        return clusters

    @property
    def total(self) -> int:
        """How many the disk has; the last one may be partial."""
        return -(-self.size_bytes // self.cluster_bytes)

    def add_data(self, start: int, end: int) -> None:
        """The bytes [start, end) are data; nothing before `start` may be added from now on."""
        self._settle_zeros()
        if start < end:
            self.data.add(start // self.cluster_bytes, -(-end // self.cluster_bytes))

    def add_zeros(self, start: int, end: int) -> None:
        """The bytes [start, end) are zeros, which the file is to tell; nothing before `start` may be added later."""
        if self._zeros and self._zeros[1] == start:
            start, self._zeros = self._zeros[0], None
        self._settle_zeros()
        if start < end:
            self._zeros = start, end

    def finish(self) -> None:
        """Nothing more comes."""
        self._settle_zeros()

    def _settle_zeros(self) -> None:
        if not self._zeros:
            return
        (start, end), self._zeros = self._zeros, None
        first = -(-start // self.cluster_bytes)
        last = self.total if end == self.size_bytes else end // self.cluster_bytes
        self.data.add(start // self.cluster_bytes, first)
        if first < last:
            self.zero.add(first, last)
        self.data.add(max(first, last), -(-end // self.cluster_bytes))
