"""What a snapshot would cost, as the source that would take it says before anything is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Space that a snapshot may take as long as it lives, since the guest writes."""

    place: str  # in words or as a path: '/var/lib/libvirt/snapmount', 'the thin pool vg/pool'
    free_bytes: int
    most_bytes: int  # if the guest overwrites all of its disks


@dataclass(frozen=True)
class Cost:
    """What a snapshot costs the guest, and this host."""

    means: str  # what takes it: 'backup job', 'btrfs, reflink'
    pause_s: float  # how long the guest is expected to be paused for it
    guest_pays: str  # as long as it lives, in words
    needs: tuple[Need, ...] = ()  # that are known beforehand
