"""The proof of a view finds what is wrong: the tests rest on it."""

from __future__ import annotations

import pytest

from ..rig import prefix
from ..rig.prefix import SECTOR, Piece, Replay

SEED = 3
SIZES = (64 * SECTOR, 32 * SECTOR)


def disks_after(writes: int) -> list[bytes]:
    """The guest's disks after so many writes."""
    replay = Replay(SEED, SIZES)
    replay.go_on(writes)
    return [replay.content(device) for device in range(len(SIZES))]


def part(device: int, first: int, sectors: int, writes: int) -> Piece:
    """What a read of those sectors returns after so many writes."""
    whole = disks_after(writes)[device]
    return Piece(device, first * SECTOR, whole[first * SECTOR : (first + sectors) * SECTOR])


@pytest.mark.parametrize("writes", [0, 1, 500])
def test_whole_disks_of_one_moment_tell_which(writes: int) -> None:
    assert prefix.prove(SEED, disks_after(writes)) == writes


def test_parts_of_one_moment_hold_and_later_ones_too() -> None:
    replay = Replay(SEED, SIZES)
    first = replay.prove([part(0, 3, 20, writes=300), part(1, 0, 32, writes=300)])
    assert 0 < first <= 300
    assert first <= replay.prove([part(0, 60, 1, writes=400)]) <= 400


@pytest.mark.parametrize("other", [250, 350], ids=["an earlier moment", "a later moment"])
def test_disks_of_two_moments_are_found(other: int) -> None:
    assert disks_after(300)[1] != disks_after(other)[1]
    with pytest.raises(AssertionError, match=r"not the writes 1\.\.\d+: disk \d, sector \d+ has"):
        prefix.prove(SEED, [disks_after(300)[0], disks_after(other)[1]])


def test_zeros_in_place_of_a_sector_are_found() -> None:
    disks = disks_after(300)
    last = next(n for n in range(64) if disks[0].startswith(prefix.MAGIC, n * SECTOR))
    damaged = disks[0][: last * SECTOR] + bytes(SECTOR) + disks[0][(last + 1) * SECTOR :]
    with pytest.raises(AssertionError, match=f"disk 0, sector {last} has"):
        prefix.prove(SEED, [damaged, disks[1]])


def test_bytes_beyond_the_end_are_found() -> None:
    with pytest.raises(AssertionError, match="disk 1 ends at 16384, and more was read"):
        Replay(SEED, SIZES).prove([Piece(1, 31 * SECTOR, bytes(2 * SECTOR))])


def test_a_proof_of_an_earlier_moment_stands_for_itself() -> None:
    assert [prefix.prove(SEED, disks_after(writes)) for writes in (300, 400, 200)] == [300, 400, 200]
