"""Which questions about a disk's extents to ask, and what follows from the answers (NBD protocol, "Block status")."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UnreachableError
from .extents import ExtentMap, agreed

# QEMU looks for the extents of one question without a pause if it has its tables in memory: some 10 us for each, while
# the guest's own requests wait (measured with QEMU 7.2 and a qcow2 disk).
ENOUGH_EXTENTS = 512  # for one answer
MOST_BYTES = 1 << 31  # for one question: lengths are 32 bit (NBD protocol, "Request message")
LEAST_BYTES = 1 << 24
FIRST_BYTES = 1 << 28


class Survey:
    """The extents of a disk, found out from its start on, a part at a time.

    Each part is asked for twice, the second time when the first answer is there, and only what was zero both times is.
    QEMU looks first whether the scratch file has a cluster, then at the origin.  A guest that discards the cluster
    between the two makes it look like a hole, though its data has just gone into the scratch file.  That happens to a
    cluster once at most: the second time the scratch file has it.
    """

    def __init__(self, size_bytes: int) -> None:
        self.extents = ExtentMap()
        self._size_bytes = size_bytes
        self._step = FIRST_BYTES

    def question(self) -> tuple[int, int] | None:
        """The part to ask for next, as offset and length; None once all is known."""
        length = min(self._step, self._size_bytes - self.extents.end)
        return (self.extents.end, length) if length else None

    def learn(self, first: Sequence[int], second: Sequence[int]) -> None:
        """Take two answers to question(), each: length, flags, length, flags, ... from its offset on.

        They may tell of less, or more, than was asked for.  Raises UnreachableError if they make no sense.
        """
        if first == second:
            self.extents.append_status(first)
        else:
            self._append_agreed(first, second)
        if not sum(first[::2]) or not sum(second[::2]):
            raise UnreachableError("QEMU tells of no extent where there must be one")
        if self.extents.end > self._size_bytes:
            raise UnreachableError("QEMU tells of extents past the end of the disk")
        if len(first) > 2 * ENOUGH_EXTENTS:
            self._step = max(LEAST_BYTES, self._step // 2)
        elif len(first) <= ENOUGH_EXTENTS:
            self._step = min(MOST_BYTES, self._step * 2)

    def _append_agreed(self, first: Sequence[int], second: Sequence[int]) -> None:
        once, again = ExtentMap(), ExtentMap()
        once.append_status(first)
        again.append_status(second)
        for extent in agreed(once, again, min(once.end, again.end)):
            self.extents.append(extent.length, extent.flags)
