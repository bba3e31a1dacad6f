"""What differs between two files is told by their blocks' addresses, against a plain list of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.host import fiemap
from snapmount.host.fiemap import Mapped
from snapmount.storage import differences

from ..strategies import PROPERTY

BLOCK = 4096
# A block of a file: its number on the device, its flags there; no block at all is a hole.
Block = tuple[int, int] | None
SHARED = 0x2000  # FIEMAP_EXTENT_SHARED, which tells nothing of the bytes
blocks = st.none() | st.tuples(st.integers(0, 5), st.sampled_from([0, SHARED, fiemap.UNWRITTEN, 0x8, 0x202]))
files = st.lists(blocks, max_size=12)


def mapped(file: Sequence[Block]) -> Iterator[Mapped]:
    """As the kernel tells it: neighbours are one extent."""
    start = 0
    while start < len(file):
        block, end = file[start], start + 1
        if block:
            number, flags = block
            while end < len(file) and file[end] == (number + end - start, flags):
                end += 1
            yield Mapped(start * BLOCK, (end - start) * BLOCK, number * BLOCK, flags)
        start = end


def is_zero(block: Block) -> bool:
    return block is None or block[1] == fiemap.UNWRITTEN


def is_same(older: Block, newer: Block) -> bool:
    """Whether they must have the same bytes."""
    if is_zero(older) or is_zero(newer):
        return is_zero(older) and is_zero(newer)
    assert older
    assert newer
    return older[0] == newer[0] and {older[1], newer[1]} <= {0, SHARED}


@PROPERTY
@given(files, files)
def test_all_is_found_that_may_differ_and_nothing_else(older: list[Block], newer: list[Block]) -> None:
    found = differences.between(mapped(older), len(older) * BLOCK, mapped(newer), len(newer) * BLOCK)
    before = [*older, *[None] * len(newer)]
    wanted = {
        number: HOLE | ZERO if is_zero(newer[number]) else 0
        for number in range(len(newer))
        if not is_same(before[number], newer[number])
    }
    told = [(block // BLOCK, each.flags) for each in found for block in range(each.start, each.end, BLOCK)]
    assert told == sorted(wanted.items())
    assert all(a.end < b.start or a.flags != b.flags for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("older_bytes", "newer_bytes", "found"),
    [
        (2 * BLOCK, 2 * BLOCK, []),
        (2 * BLOCK, 100, []),
        (2 * BLOCK, 0, []),
        (100, 2 * BLOCK, [Extent(100, 2 * BLOCK - 100, 0)]),
        (0, 2 * BLOCK, [Extent(0, 2 * BLOCK, 0)]),
        (0, 3 * BLOCK, [Extent(0, 2 * BLOCK, 0)]),
    ],
)
def test_what_lies_beyond_the_end_of_one_is_zero(older_bytes: int, newer_bytes: int, found: list[Extent]) -> None:
    both = [Mapped(0, 2 * BLOCK, 0, 0)]
    assert differences.between(both, older_bytes, both, newer_bytes) == found
