"""What is told of a snapshot that is given up for want of space."""

from __future__ import annotations

from snapmount.core.filling import Pool
from snapmount.core.lifecycle import State
from snapmount.core.units import MIB
from snapmount.sources.storage import watch
from snapmount.storage.driver import ClonesRoom, Room

PLACE = "the thin pool vg/pool"
POOL = Pool(PLACE, 2 * MIB, 16 * MIB, 3 * MIB)


def test_the_guest_s_writes_would_have_found_no_space() -> None:
    lost = watch.loss(Room(PLACE, 2 * MIB, 32 * MIB), POOL)
    assert lost.state == State.GAVE_UP
    told = "the guest's writes were about to find no space (2 MiB of 32 MiB left in the thin pool vg/pool at "
    assert lost.reason.startswith(told)
    assert lost.reason.endswith(" UTC, going at 3 MiB/s)")
    assert "--source pull" in str(lost.remedy)


def test_of_what_only_the_snapshot_lacked_the_guest_is_said_to_go_on() -> None:
    lost = watch.loss(ClonesRoom("the snapshot vg/a", 2 * MIB, 32 * MIB, "vgextend vg DEVICE"), POOL)
    told = "its room for what the guest overwrites was nearly full, and the guest goes on (2 MiB of 32 MiB left in the"
    assert lost.reason.startswith(f"{told} snapshot vg/a at ")
    assert lost.remedy == "vgextend vg DEVICE"
