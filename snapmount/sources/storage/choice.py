"""Decides which driver clones which disk, and whether the pause that takes is one that the user allows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...core import names, units
from ...core.user import User
from ...errors import NotFoundError, StateError
from ...storage import drivers
from ...storage.driver import Driver, Offer, Task
from . import clones

DEFAULT_MAX_PAUSE_S = 1.0
SUSPEND_S = 0.05  # what suspending and resuming takes beside the clones, on a host that is not busy
HOOK = "hook"  # the driver that takes what lies in a network

# Drivers whose clone of one raw image is of one moment while the guest writes to it.  A file system writes back what it
# caches of the file before it clones it, and lets nobody write meanwhile.  lvm2 holds up what is written to the volume
# alone: what the host's page cache has of it is written back in any order.
ATOMIC, ATOMIC_IF_UNCACHED = ("reflink",), ("lvm",)


@dataclass(frozen=True)
class StorageOptions:
    """What the user asks of this source."""

    drivers: tuple[tuple[str, str], ...] = ()  # by disk: the driver, or the path of the hook, that shall take it
    max_pause_s: float = DEFAULT_MAX_PAUSE_S


@dataclass(frozen=True)
class Wanted:
    """What is to be cloned of a VM."""

    vm: str
    disks: Mapping[str, Sequence[str]]  # the origins of each disk: one, or for a qcow2 with a data file two
    formats: Mapping[str, str]  # by disk
    uncached: Collection[str]  # the disks that QEMU writes to past the host's page cache
    options: StorageOptions
    snapshot_id: str
    reader: User

    @property
    def max_pause_s(self) -> float:
        return self.options.max_pause_s


@dataclass(frozen=True)
class Choice:
    """What will be made, by which drivers."""

    offers: Sequence[Offer]
    disks: Mapping[str, str]  # by origin
    is_atomic: bool  # of one moment also if the guest writes meanwhile

    @property
    def pause_s(self) -> float:
        """How long the VM is expected to be paused: different drivers work at the same time."""
        each: dict[str, float] = {}
        for offer in self.offers:
            others_s = 0.0 if offer.is_concurrent else each.get(offer.clone.driver, 0.0)
            each[offer.clone.driver] = max(each.get(offer.clone.driver, 0.0), others_s + offer.pause_s)
        return SUSPEND_S + max(each.values(), default=0.0)

    @property
    def drivers(self) -> str:
        """Those that make the clones, in words."""
        return ", ".join(dict.fromkeys(offer.clone.driver for offer in self.offers))

    @property
    def guest_pays(self) -> str:
        """What the clones cost the guest as long as they are there, in words."""
        return "; ".join(dict.fromkeys(offer.guest_pays for offer in self.offers if offer.guest_pays))

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The disks whose snapshots this host will not be able to read."""
        origins = {origin for offer in self.offers if offer.gives_url for origin in offer.clone.origins}
        return tuple(dict.fromkeys(disk for origin, disk in self.disks.items() if origin in origins))

    @property
    def longest(self) -> Offer:
        return max(self.offers, key=lambda offer: offer.pause_s)

    def disks_of(self, offer: Offer) -> str:
        """The disks whose images it clones, in words."""
        return names.listed(sorted({self.disks[origin] for origin in offer.clone.origins}))


async def choose(wanted: Wanted) -> Choice:
    """Which drivers clone the disks.

    Raises StateError for a disk that none can take, with the reason of each driver, NotFoundError for a disk or a
    driver that there is not.
    """
    named = _named(wanted)
    by_driver: dict[int, tuple[Driver, list[str]]] = {}
    for disk, origins in wanted.disks.items():
        driver = await _serving(wanted, disk, origins, named.get(disk))
        by_driver.setdefault(id(driver), (driver, []))[1].extend(origins)
    offers: list[Offer] = []
    for driver, origins in by_driver.values():
        task = Task(wanted.snapshot_id, list(dict.fromkeys(origins)), wanted.reader)
        what = f"{wanted.vm}: looking at what its disks are stored on"
        offers += await clones.in_time(clones.LOOK_S, driver.plan(task), what, StateError)
    disks = {origin: disk for disk, origins in wanted.disks.items() for origin in origins}
    return Choice(offers, disks, is_atomic=_is_atomic(wanted, offers, disks))


def _is_atomic(wanted: Wanted, offers: Sequence[Offer], disks: Mapping[str, str]) -> bool:
    if len(disks) != 1:
        return False
    (disk,), driver = disks.values(), offers[0].clone.driver
    is_one_moment = driver in ATOMIC or (driver in ATOMIC_IF_UNCACHED and disk in wanted.uncached)
    return is_one_moment and wanted.formats[disk] == "raw"


def _named(wanted: Wanted) -> dict[str, str]:
    for disk, _ in wanted.options.drivers:
        if disk not in wanted.disks:
            known = ", ".join(wanted.disks) or "none"
            raise NotFoundError(f"{wanted.vm}: --storage names {disk!r}; the disks that are cloned are {known}")
    return dict(wanted.options.drivers)


async def _serving(wanted: Wanted, disk: str, origins: Sequence[str], word: str | None) -> Driver:
    reasons = {}
    for name, driver in _candidates(word, wanted).items():
        is_hook = name == HOOK or name.startswith("/")
        is_far = not is_hook and not all(origin.startswith("/") for origin in origins)
        reasons[name] = "it lies in a network" if is_far else await _why_not(driver, origins)
        if reasons[name] is None:
            return driver
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    remedy = names.command("snapmount", wanted.vm, "MOUNTPOINT", "--source", "storage", "--exclude-disk", disk)
    raise StateError(f"{wanted.vm}: {disk} ({', '.join(origins)}) cannot be taken by storage: {told}", remedy)


def _candidates(word: str | None, wanted: Wanted) -> Mapping[str, Driver]:
    """In the order in which they are asked.  Raises NotFoundError."""
    if word is not None:
        return {word: drivers.of(word)}
    known = drivers.DRIVERS
    if wanted.max_pause_s == 0:
        return dict(sorted(known.items(), key=lambda item: item[0] not in (*ATOMIC, *ATOMIC_IF_UNCACHED)))
    return known


async def _why_not(driver: Driver, origins: Sequence[str]) -> str | None:
    """Why it cannot clone all of them."""
    for origin in origins:
        asked = driver.why_not(origin)
        if why := await clones.in_time(clones.LOOK_S, asked, f"looking at what {origin} is stored on", StateError):
            return why
    return None


def check_pause(wanted: Wanted, choice: Choice) -> None:
    """Raise StateError if the VM, which runs, would have to be paused for longer than the user allows."""
    if wanted.max_pause_s == 0 and not choice.is_atomic:
        raise StateError(
            f"{wanted.vm} has to be paused for a moment: only one raw disk can be taken without that, an image "
            "on a file system with reflinks, or a logical volume that QEMU writes to with cache='none'",
            f"--max-pause {DEFAULT_MAX_PAUSE_S:g}   (it would be about {units.moment(choice.pause_s)})",
        )
    if wanted.max_pause_s == 0 or choice.pause_s <= wanted.max_pause_s:
        return
    offer = choice.longest
    allowed = f"--max-pause allows {units.moment(wanted.max_pause_s)}"
    remedy = names.command("snapmount", wanted.vm, "MOUNTPOINT", "--source", "pull")
    raise StateError(
        f"{wanted.vm} would be paused for about {units.moment(choice.pause_s)}, most of it for "
        f"{choice.disks_of(offer)} ({offer.clone.driver}), and {allowed}",
        offer.remedy or f"{remedy}   (which pauses nothing, or a longer --max-pause)",
    )
