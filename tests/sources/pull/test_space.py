"""Scratch space: what a snapshot may need, whether that will do, and when it is given up for the guest's sake."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.document import from_document, to_document
from snapmount.core.filling import BURST_BYTES_PER_S, LONGEST_WAIT_S, SHORTEST_WAIT_S, Pool
from snapmount.core.units import GIB, KIB, MIB
from snapmount.errors import SpaceError
from snapmount.sources.pull import space
from snapmount.sources.pull.space import (
    CLUSTER_BYTES,
    FLOOR_BYTES,
    ScratchPolicy,
    Space,
    Usage,
    qcow2_bytes,
)

from ...strategies import PROPERTY, disk_names, text

NOW = datetime(2026, 11, 23, 19, 20, 11, tzinfo=UTC)
sizes = st.integers(min_value=0, max_value=1 << 50)
limits = st.none() | st.integers(min_value=MIB, max_value=1 << 50)


def pool(free: int, remaining: int = 100 * GIB, bytes_per_s: float = 0.0) -> Pool:
    return Pool("/scratch", free, remaining, bytes_per_s)


def fill(used: int, *pools: Pool, limit: int | None = None, bytes_per_s: float = 0.0) -> Usage:
    return Usage(used, bytes_per_s, ScratchPolicy(limit), pools)


# -- before the snapshot -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="this host lacks qemu-img: run contrib/setup")
@pytest.mark.parametrize(
    "size", [512, 64 * KIB, 32 * MIB, 512 * MIB, 512 * MIB + 1, 100 * GIB + 512, 5 << 40, 16 << 40, 40 << 40]
)
def test_the_worst_case_is_as_qemu_measures_it(size: int) -> None:
    command = ["qemu-img", "measure", "--output", "json", "-O", "qcow2", "--size", str(size)]
    measured = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert qcow2_bytes(size) == measured["fully-allocated"]


@PROPERTY
@given(sizes, sizes)
def test_a_larger_disk_never_needs_less(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert large <= qcow2_bytes(large)
    assert qcow2_bytes(small) <= qcow2_bytes(large)


@PROPERTY
@given(sizes, limits, st.booleans())
def test_no_more_than_the_limit_is_needed_and_what_is_reserved_reaches_beyond_it(
    size: int, limit: int | None, is_reserved: bool
) -> None:
    policy = ScratchPolicy(limit, is_reserved)
    assert policy.worst_bytes(size) == min(qcow2_bytes(size), limit or qcow2_bytes(size))
    assert policy.remaining_bytes([(size, 0)]) == policy.worst_bytes(size)
    assert policy.remaining_bytes([(size, policy.worst_bytes(size))]) == 0
    if is_reserved:
        assert policy.worst_bytes(size) <= policy.reserved_bytes(size) <= qcow2_bytes(size)
    else:
        assert policy.reserved_bytes(size) == 0


@PROPERTY
@given(
    st.builds(
        ScratchPolicy,
        limits,
        st.booleans(),
        st.dictionaries(disk_names, text).map(lambda devices: tuple(devices.items())),
        st.none() | text,
    )
)
def test_a_policy_comes_back_from_the_record(policy: ScratchPolicy) -> None:
    assert from_document(ScratchPolicy, json.loads(json.dumps(to_document(policy)))) == policy


@pytest.mark.parametrize(
    ("allocated", "floor"), [(0, 64 * MIB), (640 * MIB, 64 * MIB), (641 * MIB, 641 * MIB // 10), (20 * GIB, 2 * GIB)]
)
def test_a_tenth_of_the_allocated_size_and_64_mib_must_be_free(allocated: int, floor: int) -> None:
    assert Space(free=0, worst=allocated, allocated=allocated).floor == floor
    with pytest.raises(SpaceError):
        space.judge("vm1", "/scratch", Space(floor - 1, allocated, allocated))
    space.judge("vm1", "/scratch", Space(floor, allocated, allocated))


def test_too_little_space_is_refused_with_both_figures_and_a_way_out() -> None:
    with pytest.raises(SpaceError, match=r"/scratch has 1 GiB free .* at least 2 GiB must be free") as caught:
        space.judge("vm1", "/scratch", Space(free=GIB, worst=40 * GIB, allocated=20 * GIB))
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("snapmount vm1 MOUNTPOINT --scratch-dir DIRECTORY")


def test_a_worst_case_that_does_not_fit_is_warned_of() -> None:
    warning = space.judge("vm1", "/scratch", Space(free=39 * GIB, worst=40 * GIB, allocated=GIB))
    assert warning is not None
    assert "/scratch has 39 GiB free" in warning
    assert "may need 40 GiB" in warning


def test_space_for_the_worst_case_is_no_matter() -> None:
    assert space.judge("vm1", "/scratch", Space(free=40 * GIB, worst=40 * GIB, allocated=GIB)) is None


def test_a_limit_bounds_what_must_be_free() -> None:
    limited = Space(free=GIB, worst=GIB, allocated=200 * GIB)
    assert limited.floor == GIB
    assert space.judge("vm1", "/scratch", limited) is None


def test_what_is_reserved_must_be_free_at_once() -> None:
    assert space.judge("vm1", "/scratch", Space(40 * GIB, 40 * GIB, GIB, reserved=40 * GIB)) is None
    with pytest.raises(SpaceError, match=r"/scratch has 39 GiB free; --scratch-reserve takes 40 GiB") as caught:
        space.judge("vm1", "/scratch", Space(39 * GIB, 40 * GIB, GIB, reserved=40 * GIB))
    assert "--scratch-limit" in str(caught.value.remedy)


def test_a_block_device_is_judged_by_its_size() -> None:
    worst = qcow2_bytes(GIB)
    assert space.judge_device("vda", "/dev/sdx", worst, GIB, ScratchPolicy()) is None
    assert space.judge_device("vda", "/dev/sdx", 256 * MIB, GIB, ScratchPolicy(256 * MIB)) is None
    warning = space.judge_device("vda", "/dev/sdx", worst - 1, GIB, ScratchPolicy())
    assert warning is not None
    assert "vda may need 1 GiB" in warning
    with pytest.raises(SpaceError, match=r"/dev/sdx has 63 MiB; vda needs at least 64 MiB"):
        space.judge_device("vda", "/dev/sdx", 63 * MIB, GIB, ScratchPolicy())


# -- when it is given up -----------------------------------------------------------------------------------------------


@PROPERTY
@given(sizes, sizes, st.floats(min_value=0, max_value=1e10))
def test_a_snapshot_that_cannot_need_more_than_is_free_is_never_given_up(
    free: int, remaining: int, bytes_per_s: float
) -> None:
    there = fill(0, pool(free, remaining, bytes_per_s))
    if free >= remaining:
        assert not there.is_short
    if free < min(remaining, FLOOR_BYTES):
        assert there.is_short
    assert there.is_short == (there.headroom is not None and there.headroom < 0)


@PROPERTY
@given(sizes, st.integers(min_value=MIB, max_value=1 << 50), st.integers(min_value=0, max_value=1 << 40))
def test_one_looks_again_before_the_room_is_used_up(used: int, limit: int, growth: int) -> None:
    there = fill(used, pool(1 << 60), limit=limit, bytes_per_s=growth)
    assert 0 < there.wait_s <= LONGEST_WAIT_S
    if there.left_s is not None:
        assert there.left_s >= 0
        assert there.wait_s <= max(there.left_s / 2, SHORTEST_WAIT_S) or growth > BURST_BYTES_PER_S


def test_the_reason_tells_what_has_run_out_with_figures_and_the_time() -> None:
    at_limit = fill(GIB, pool(50 * GIB), limit=GIB, bytes_per_s=312 * MIB)
    assert at_limit.is_short
    assert (
        at_limit.why_give_up(NOW)
        == "scratch limit reached (1 GiB of 1 GiB at 2026-11-23 19:20:11 UTC, growing 312 MiB/s)"
    )
    full = fill(GIB, pool(50 * MIB), bytes_per_s=MIB)
    assert full.is_short
    assert full.why_give_up(NOW) == (
        "scratch space ran out (50 MiB left on /scratch, 1 GiB used at 2026-11-23 19:20:11 UTC, growing 1 MiB/s)"
    )


def test_the_time_left_is_that_until_the_snapshot_is_given_up() -> None:
    assert fill(0, pool(1 << 50), limit=10 * MIB, bytes_per_s=MIB).left_s == 10
    assert fill(0, pool(FLOOR_BYTES + 10 * MIB), bytes_per_s=MIB).left_s == 10
    assert fill(0, pool(1 << 50), limit=10 * MIB).left_s is None, "it does not grow"
    assert fill(0, pool(1 << 50, remaining=GIB), bytes_per_s=MIB).left_s is None, "there is enough for all"
    assert fill(GIB, pool(1 << 50), limit=10 * MIB, bytes_per_s=MIB).left_s == 0


def test_the_time_left_counts_what_others_write() -> None:
    others = pool(FLOOR_BYTES + 100 * MIB, bytes_per_s=20 * MIB)
    assert fill(0, others, bytes_per_s=MIB).left_s == 5
    assert fill(0, others).left_s == 5, "the guest itself writes nothing"
    slow = pool(FLOOR_BYTES + 100 * MIB, bytes_per_s=MIB)
    assert fill(0, slow, others, bytes_per_s=10 * MIB).left_s == 5, "the place that is full first"
    assert fill(0, slow, bytes_per_s=10 * MIB).left_s == 10, "their measured rate lags behind"
    assert fill(0, others, limit=10 * MIB, bytes_per_s=MIB).left_s == 5
    assert fill(0, others, limit=10 * MIB, bytes_per_s=5 * MIB).left_s == 2


def test_a_guest_that_has_stopped_for_want_of_space_counts_where_there_is_little() -> None:
    enough = fill(0, pool(FLOOR_BYTES, remaining=0))
    assert not replace(enough, is_guest_stopped=True).is_short
    little = fill(0, pool(FLOOR_BYTES - 1, remaining=0))
    assert not little.is_short
    assert replace(little, is_guest_stopped=True).is_short


@PROPERTY
@given(st.dictionaries(disk_names, sizes, min_size=1, max_size=8), st.integers(min_value=0, max_value=1 << 50))
def test_some_threshold_is_crossed_before_the_room_is_used_up(ends: dict[str, int], room: int) -> None:
    lengths = space.thresholds(ends, room)
    assert set(lengths) == set(ends)
    assert all(length > ends[disk] for disk, length in lengths.items())
    assert sum(lengths[disk] - ends[disk] for disk in ends) <= room + CLUSTER_BYTES * len(ends)
