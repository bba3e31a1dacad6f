"""What `list`, `show` and JSON tell of a snapshot that QEMU keeps."""

from __future__ import annotations

from pathlib import Path

from ...core import units
from ...core.description import Description, Growth
from ...host import glances
from ...records.record import Record
from . import state
from .figures import Figures
from .state import PullState


def describe(record: Record, directory: Path, is_active: bool) -> Description:
    """`directory` is the snapshot's runtime directory, where its server, if it is active, keeps what it measures."""
    kept = state.of(record)
    figures = Figures.load(directory) if is_active else None
    used = figures.used_bytes if figures else _used_bytes(kept)
    free = glances.free_bytes(kept.directory.parent)
    growth = Growth(figures.bytes_per_s, figures.left_s) if figures else None
    return Description(
        used_bytes=used,
        growth=growth,
        nbd_uris={disk.name: kept.export_uri(disk.name) for disk in record.snapshot.disks},
        scratch={
            "directory": kept.scratch,
            "place": kept.policy.place,
            "devices": dict(kept.policy.devices),
            "reserved": kept.policy.is_reserved,
            "limit_bytes": kept.policy.limit_bytes,
            "used_bytes": used,
            "free_bytes": free,
            "growth_bytes_per_s": figures and round(figures.bytes_per_s),
            "left_s": figures and figures.left_s and round(figures.left_s, 1),
        },
        facts=_facts(kept, used, free, growth),
    )


def _used_bytes(kept: PullState) -> int | None:
    """Of block devices only its server can tell."""
    return None if kept.policy.devices else glances.used_bytes(kept.directory)


def _facts(kept: PullState, used: int | None, free: int | None, growth: Growth | None) -> list[tuple[str, str]]:
    policy = kept.policy
    told = f"{'an unknown amount' if used is None else units.size(used)} used"
    told += f" of at most {units.size(policy.limit_bytes)}" if policy.limit_bytes else ""
    told += ", reserved" if policy.is_reserved else ""
    words = [told]
    words += [f"{units.size(free)} free"] if free is not None else []
    words += [f"growing {units.rate(growth.bytes_per_s)}"] if growth else []
    words += [f"{units.duration(growth.left_s)} left at this rate"] if growth and growth.left_s is not None else []
    return [
        ("scratch", kept.scratch + (f" ({policy.place})" if policy.place else "")),
        *(("scratch", f"{device}, of {disk}") for disk, device in policy.devices),
        ("", ", ".join(words)),
    ]
