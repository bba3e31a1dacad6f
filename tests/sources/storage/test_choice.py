"""Which driver clones which disk, and which pauses are allowed; by drivers that nothing is stored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from snapmount.core.extents import Extent
from snapmount.core.user import User
from snapmount.errors import NotFoundError, StateError
from snapmount.sources.storage import choice
from snapmount.sources.storage.choice import Choice, StorageOptions, Wanted
from snapmount.storage import drivers
from snapmount.storage.driver import Clone, Driver, Offer, Room, Task


class Storage:
    """A driver for what lies below one directory."""

    def __init__(self, name: str, directory: str, pause_s: float = 0.1) -> None:
        self._name, self._directory, self._pause_s = name, directory, pause_s

    async def why_not(self, origin: str) -> str | None:
        return None if origin.startswith(self._directory) else f"lies not in {self._directory}"

    async def plan(self, task: Task) -> Sequence[Offer]:
        return [Offer(Clone(self._name, (origin,), ()), self._pause_s, "a faster disk") for origin in task.origins]

    async def prepare(self, clone: Clone) -> None: ...

    async def create(self, clone: Clone) -> None: ...

    async def activate(self, clone: Clone) -> Clone:
        return clone

    async def why_lost(self, clone: Clone) -> str | None: ...

    async def rooms(self, clone: Clone) -> Sequence[Room]:
        return []

    async def changed(self, older: Clone, newer: Clone, origin: str) -> Sequence[Extent]:
        return []

    async def remove(self, clone: Clone) -> None: ...

    def by_hand(self, clone: Clone) -> Sequence[str]:
        return []


FAST: Mapping[str, Driver] = {
    "first": Storage("first", "/a", 0.3),
    "reflink": Storage("reflink", "/"),
    "other": Storage("other", "/b", 0.5),
}
VDA, VDB = {"vda": ["/a/vda.img"]}, {"vdb": ["/b/vdb.qcow2", "/b/vdb.data"]}
FORMATS = {"vda": "raw", "vdb": "qcow2"}
WANTED = Wanted("vm1", {**VDA, **VDB}, FORMATS, [], StorageOptions(), "3f2a91bc", User(1, 1, ()))


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "DRIVERS", FAST)


def asking(wanted: Wanted = WANTED, max_pause_s: float = 1.0, **named: str) -> Wanted:
    return replace(wanted, options=StorageOptions(tuple(named.items()), max_pause_s))


async def chosen(wanted: Wanted) -> dict[str, str]:
    """The driver of each origin."""
    made = await choice.choose(wanted)
    return {origin: offer.clone.driver for offer in made.offers for origin in offer.clone.origins}


async def test_each_disk_goes_to_the_first_driver_that_can_take_it_or_to_the_one_that_is_named() -> None:
    assert await chosen(WANTED) == {"/a/vda.img": "first", "/b/vdb.qcow2": "reflink", "/b/vdb.data": "reflink"}
    named = await chosen(asking(vdb="other", vda="reflink"))
    assert named == {"/a/vda.img": "reflink", "/b/vdb.qcow2": "other", "/b/vdb.data": "other"}


async def test_a_disk_that_no_driver_can_take_is_an_error_with_the_reason_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drivers, "DRIVERS", {name: FAST[name] for name in ("first", "other")})
    nowhere = replace(WANTED, disks={"vda": ["/c/vda.img"]})
    with pytest.raises(StateError) as caught:
        await choice.choose(nowhere)
    assert caught.value.message == (
        "vm1: vda (/c/vda.img) cannot be taken by storage: first: lies not in /a; other: lies not in /b"
    )
    assert "--exclude-disk vda" in str(caught.value.remedy)


async def test_what_lies_in_a_network_is_for_hooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    far = replace(WANTED, disks={"vda": ["rbd:vms/vm1"]})
    with pytest.raises(StateError, match=r"first: it lies in a network; reflink: it lies in a network"):
        await choice.choose(far)
    monkeypatch.setattr(drivers, "DRIVERS", {**FAST, "hook": Storage("hook", "rbd:")})
    assert await chosen(far) == {"rbd:vms/vm1": "hook"}


async def test_a_driver_that_is_named_and_cannot_is_an_error_though_others_could() -> None:
    with pytest.raises(StateError, match=r"vda \(/a/vda.img\) cannot be taken by storage: other: lies not in /b$"):
        await choice.choose(asking(vda="other"))


@pytest.mark.parametrize(
    ("named", "told"),
    [({"vdz": "first"}, "--storage names 'vdz'; the disks that are cloned are vda, vdb"), ({"vda": "x"}, "driver 'x'")],
)
async def test_a_disk_or_a_driver_that_there_is_not_is_an_error(named: dict[str, str], told: str) -> None:
    with pytest.raises(NotFoundError, match=told):
        await choice.choose(replace(WANTED, options=StorageOptions(tuple(named.items()))))


async def test_what_one_driver_makes_adds_up_and_different_drivers_work_at_the_same_time() -> None:
    made = await choice.choose(WANTED)
    assert made.pause_s == pytest.approx(choice.SUSPEND_S + 0.3)
    made = await choice.choose(asking(vdb="other"))
    assert made.pause_s == pytest.approx(choice.SUSPEND_S + 1.0)


async def test_a_pause_that_is_too_long_is_refused_with_the_disk_and_what_would_be_better() -> None:
    wanted = asking(vdb="other")
    made = await choice.choose(wanted)
    with pytest.raises(
        StateError, match=r"^vm1 would be paused for about 1.1 s, most of it for vdb \(other\)"
    ) as caught:
        choice.check_pause(wanted, made)
    assert caught.value.remedy == "a faster disk"
    choice.check_pause(asking(max_pause_s=2, vdb="other"), made)


async def test_without_a_pause_only_one_raw_file_that_can_be_cloned_by_itself_is_taken() -> None:
    one = replace(WANTED, disks=VDA)
    wanted = asking(one, max_pause_s=0)
    made = await choice.choose(wanted)
    assert [offer.clone.driver for offer in made.offers] == ["reflink"], "the driver that can do it goes first"
    assert made.is_atomic
    choice.check_pause(wanted, made)
    for other in (WANTED, replace(WANTED, disks=VDB), replace(one, formats={"vda": "qcow2"})):
        made = await choice.choose(asking(other, max_pause_s=0))
        assert not made.is_atomic
        with pytest.raises(StateError, match=r"has to be paused for a moment"):
            choice.check_pause(asking(other, max_pause_s=0), made)
    assert not (await choice.choose(asking(one, max_pause_s=0, vda="first"))).is_atomic


@pytest.mark.parametrize(("uncached", "is_atomic"), [(["vda"], True), (["vdb"], False)])
async def test_a_raw_volume_is_taken_without_a_pause_only_if_no_cache_holds_what_is_written_to_it(
    monkeypatch: pytest.MonkeyPatch, uncached: list[str], is_atomic: bool
) -> None:
    monkeypatch.setattr(drivers, "DRIVERS", {"first": FAST["first"], "lvm": Storage("lvm", "/a")})
    wanted = asking(replace(WANTED, disks=VDA, uncached=uncached), max_pause_s=0)
    made = await choice.choose(wanted)
    assert ([offer.clone.driver for offer in made.offers], made.is_atomic) == (["lvm"], is_atomic)


def offer(driver: str, pause_s: float, is_concurrent: bool = False) -> Offer:
    return Offer(Clone(driver, ("/a",), ("/b",)), pause_s, is_concurrent=is_concurrent)


@pytest.mark.parametrize(
    ("offers", "pause_s"),
    [
        ([], 0.0),
        ([offer("reflink", 0.25), offer("reflink", 0.5)], 0.75),
        ([offer("hook", 0.25, True), offer("hook", 0.5, True), offer("hook", 0.125, True)], 0.5),
        ([offer("hook", 0.5, True), offer("reflink", 0.25)], 0.5),
        ([offer("hook", 0.25, True), offer("reflink", 0.25), offer("reflink", 0.25)], 0.5),
    ],
)
def test_what_is_made_at_the_same_time_counts_once(offers: list[Offer], pause_s: float) -> None:
    assert Choice(offers, {}, is_atomic=False).pause_s == choice.SUSPEND_S + pause_s
