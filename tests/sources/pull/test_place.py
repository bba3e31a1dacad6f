"""The place for scratch files where the user names none: the fastest that suits, and never memory or a file server."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.units import GIB
from snapmount.errors import SpaceError
from snapmount.sources.pull.scratch import places
from snapmount.sources.pull.scratch.place import Candidate, choose, warning
from snapmount.sources.pull.scratch.places import FileSystem
from snapmount.sources.pull.space import Space

from ...strategies import PROPERTY

WORST = 100 * GIB


def place(
    path: str = "/images", fstype: str = "xfs", rotational: bool | None = None, free: int = WORST, default: bool = False
) -> Candidate:
    return Candidate(path, fstype, rotational, Space(free, WORST, WORST), default)


def default(fstype: str = "ext4", rotational: bool | None = None, free: int = WORST) -> Candidate:
    return place("/default", fstype, rotational, free, default=True)


candidates = st.builds(
    place,
    fstype=st.sampled_from(["ext4", "xfs", "tmpfs", "nfs4", "fuse.sshfs", "overlay"]),
    rotational=st.sampled_from([True, False, None]),
    free=st.integers(min_value=0, max_value=2 * WORST),
)


def test_the_default_is_taken_where_no_other_is_better() -> None:
    for other in (place(rotational=True), place(), place(free=10 * WORST)):
        assert choose([default(), other]).path == "/default"
    assert choose([default(rotational=False), place(rotational=False)]).path == "/default"


def test_a_faster_one_is_better() -> None:
    chosen = choose([default(rotational=True), place(rotational=False)])
    assert chosen.path == "/images"
    assert chosen.why == "beside the VM's images, xfs on a disk that does not rotate, room for the worst case"


def test_room_for_the_worst_case_comes_before_speed_and_else_the_most_room() -> None:
    assert choose([default(rotational=True), place(rotational=False, free=WORST - 1)]).path == "/default"
    assert choose([default(free=GIB), place(rotational=True)]).path == "/images"
    chosen = choose([default(rotational=False, free=2 * GIB), place(rotational=True, free=3 * GIB)])
    assert chosen.path == "/images"
    assert chosen.why.endswith("3 GiB free, no other place has more")


@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs", "nfs4", "cifs", "ceph", "fuse.sshfs", "9p"])
def test_memory_and_file_servers_are_never_chosen_unasked(fstype: str) -> None:
    assert choose([default(rotational=True), place(fstype=fstype, rotational=False)]).path == "/default"
    with pytest.raises(SpaceError, match=rf"/default: it is .*\({fstype}\)") as caught:
        choose([default(fstype=fstype)])
    assert "--scratch-dir" in str(caught.value.remedy)


@PROPERTY
@given(candidates, st.lists(candidates, max_size=4))
def test_what_is_chosen_suits_and_no_other_that_holds_all_is_passed_over(
    first: Candidate, others: list[Candidate]
) -> None:
    offered = [first, *others]
    named = [Candidate(str(n), each.fstype, each.is_rotational, each.space, n == 0) for n, each in enumerate(offered)]
    try:
        chosen = next(each for each in named if each.path == choose(named).path)
    except SpaceError:
        assert all(each.why_not for each in named)
        return
    assert not chosen.why_not
    if not chosen.holds_worst_case:
        assert not any(each.holds_worst_case for each in named if not each.why_not)


def test_only_memory_is_warned_of_where_the_user_has_chosen() -> None:
    assert warning("/fast", "xfs") is None
    assert "this host's memory" in str(warning("/dev/shm", "tmpfs"))


def test_a_device_that_is_no_disk_is_of_unknown_speed() -> None:
    assert places.is_rotational(FileSystem("tmpfs", "tmpfs", Path("/proc").stat().st_dev)) is None
    assert places.is_rotational(FileSystem("btrfs", "/dev/snapmount-test-none[/sub]", 0x2A)) is None
