"""What differs between two thin snapshots of a pool, told by thin_delta(8) from a snapshot of the pool's metadata.

A pool can have one such snapshot, which costs the guest space in the metadata as long as it is there.  So a lock keeps
us from one another, and a tag on a volume of ours tells that the pool's is ours, should we be killed meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from xml.etree import ElementTree

import trio

from ..core import extents
from ..core.extents import Extent
from ..errors import MissingError, StateError
from ..host import execution
from . import devicemapper, lvmcommands

TAG = "snapmount-compares"
DELTA_S = 600.0


def parse(text: bytes, size_bytes: int, *, unallocated_is_zero: bool) -> list[Extent]:
    """What differs by thin_delta's XML, up to that size.  Raises ValueError.

    Ranges are in blocks of `data_block_size` sectors.  Those that only the older one has allocated have been discarded
    since, and read as zeros, unless they are read from an external origin.
    """
    try:
        root = ElementTree.fromstring(text)
        unit = int(root.attrib["data_block_size"]) * devicemapper.SECTOR_BYTES
        differences = root.findall("diff/*")
        if root.tag != "superblock" or root.find("diff") is None:
            raise ValueError("thin_delta has printed no differences")
        found = []
        for each in differences:
            if each.tag == "same":
                continue
            start, length = (int(each.attrib[key]) * unit for key in ("begin", "length"))
            is_zero = each.tag == "left_only" and unallocated_is_zero
            end = min(start + length, size_bytes)
            if start < end:
                found.append(Extent(start, end - start, extents.HOLE | extents.ZERO if is_zero else 0))
    except (ElementTree.ParseError, KeyError) as error:
        raise ValueError(f"thin_delta has printed something else: {error!r}") from error
    return sorted(found, key=lambda extent: extent.start)


async def changed(group: str, pool: str, older: str, newer: str) -> list[Extent]:
    """What differs between two thin volumes of the pool, which are active and nobody writes to.  Raises StateError."""
    what = f"{group}/{older} and {group}/{newer} cannot be compared"
    try:
        names = [devicemapper.name(group, each) for each in (older, newer)]
        first, second = [devicemapper.thin(await devicemapper.table(each, what)) for each in names]
        device = await devicemapper.at(f"/dev/mapper/{names[1]}")
        if device is None:
            raise StateError(f"{what}: {group}/{newer} is not active")
        async with _metadata_snapshot(group, pool, newer, what):
            command = ["thin_delta", "--metadata-snap", "--thin1", str(first.number), "--thin2", str(second.number)]
            text = await execution.output([*command, _metadata(group, pool)], DELTA_S, what, StateError)
        return parse(text, device.size_bytes, unallocated_is_zero=not second.has_external_origin)
    except ValueError as error:
        raise StateError(f"{what}: {error}") from error
    except MissingError as error:
        raise StateError(f"{what}: {error.message}", error.remedy) from error


def _metadata(group: str, pool: str) -> str:
    return f"/dev/mapper/{devicemapper.name(group, f'{pool}_tmeta')}"


@contextlib.asynccontextmanager
async def _metadata_snapshot(group: str, pool: str, volume: str, what: str) -> AsyncIterator[None]:
    """Reserves the pool's metadata snapshot for the block, and tags the volume meanwhile."""
    with _locked(group, pool, what):
        await _release_forgotten(group, pool, what)
        state = devicemapper.pool(await devicemapper.status(devicemapper.pool_name(group, pool), what))
        if state is None or state.holds_metadata:
            why = "has failed" if state is None else "has a metadata snapshot already, which is not ours"
            raise StateError(f"{what}: the thin pool {group}/{pool} {why}")
        try:
            await lvmcommands.change(["lvchange", "--yes", "--addtag", TAG, f"{group}/{volume}"], what)
            await devicemapper.message(devicemapper.pool_name(group, pool), "reserve_metadata_snap", what)
            yield
        finally:
            with trio.CancelScope(shield=True):
                await _release_forgotten(group, pool, what)


async def release(group: str, pool: str, what: str) -> None:
    """Release the pool's metadata snapshot if one of ours was killed before it did.  Raises StateError."""
    with _locked(group, pool, what):
        await _release_forgotten(group, pool, what)


async def _release_forgotten(group: str, pool: str, what: str) -> None:
    tagged = await lvmcommands.volumes("--select", f'lv_tags={{"{TAG}"}} && pool_lv="{pool}"', group, what=what)
    if not tagged:
        return
    device = devicemapper.pool_name(group, pool)
    state = devicemapper.pool(await devicemapper.status(device, what))
    if state is not None and state.holds_metadata:
        await devicemapper.message(device, "release_metadata_snap", what)
    for volume in tagged:
        await lvmcommands.change(["lvchange", "--yes", "--deltag", TAG, str(volume)], what)


@contextlib.contextmanager
def _locked(group: str, pool: str, what: str) -> Iterator[None]:
    """The lock of the pool among us: flock(2) of its metadata's device node, which nothing else locks."""
    try:
        descriptor = os.open(_metadata(group, pool), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"{what}: {error.filename} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StateError(f"{what}: another process compares snapshots of the thin pool {group}/{pool}") from None
    finally:
        os.close(descriptor)
