"""Finds out what a disk of a VM consists of, as libvirt does when it starts the VM.

The first image's format is that of the VM's definition; a backing file's is that of the definition, or else of the
header of the image that rests on it.  One that neither tells is refused, as by libvirt (virStorageSourceGetMetadata()):
what a guest has written into a raw image must not decide what is read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core import imagechain, names, origin
from ..core.diskdefinition import DiskDefinition
from ..core.imagechain import WITH_BACKING, Layer
from ..core.origin import NetworkOrigin, Origin
from ..core.user import User
from ..errors import StateError
from ..host import blocking, execution, privileges
from ..hypervisor import Hypervisor

LOOK_S = 30.0
MOST_LAYERS = 200  # that libvirt follows (QEMU_DOMAIN_STORAGE_SOURCE_CHAIN_MAX_DEPTH)


@dataclass(frozen=True)
class Found:
    """A disk as it lies there."""

    layers: tuple[Layer, ...]
    size_bytes: int
    allocated_bytes: int | None  # None if that cannot be told


@dataclass(frozen=True)
class Owner:
    """The VM whose disk it is."""

    name: str
    user: User  # QEMU's, who looks into the images
    otherwise: str  # the remedy where a disk cannot be read without its VM


async def find(vm: Owner, disk: DiskDefinition, connection: Hypervisor) -> Found:
    """What the disk consists of.

    Raises StateError for a disk that cannot be read without its VM, NotFoundError or StateError for an image that is
    not there.
    """
    if disk.untold:
        what = names.listed([f"<{path}>" for path in disk.untold])
        raise _needs_vm(vm, f"{vm.name}: {disk.name} is defined with {what}")
    top = Layer(disk.format, await _origin(disk, connection))
    if isinstance(top.origin, str) and not os.path.isabs(top.origin):
        raise _needs_vm(vm, f"{vm.name}: {disk.name} is of type {disk.kind}")
    layers: list[Layer] = []
    size_bytes, allocated, pending = 0, 0, [top, *disk.backing]
    is_known = True
    while pending:
        layer = await _located(pending.pop(0))
        told = await _info(vm, disk.name, layer)
        data = told.get("format-specific", {}).get("data", {}).get("data-file")
        if data:
            layer = replace(layer, data=await _located(Layer("raw", _beside(layer.origin, data))))
        size_bytes = size_bytes if layers else told["virtual-size"]
        taken = await _taken(layer)
        is_known, allocated = is_known and taken is not None, allocated + (taken or 0)
        layers.append(layer)
        if len(layers) > MOST_LAYERS:
            raise StateError(f"{vm.name}: {disk.name} consists of more than {MOST_LAYERS} images: one rests on itself?")
        if not pending and not disk.is_chain_whole and (below := _backing(vm, disk.name, layer, told)):
            pending.append(below)
    return Found(tuple(layers), size_bytes, allocated if is_known else None)


def _needs_vm(vm: Owner, what: str) -> StateError:
    return StateError(f"{what}, which can be read while the VM runs only", vm.otherwise)


async def _origin(disk: DiskDefinition, connection: Hypervisor) -> Origin:
    if disk.kind == "volume" and isinstance(disk.origin, str):
        pool, _, volume = disk.origin.partition("/")
        return await connection.volume_path(pool, volume)
    return disk.origin


async def _located(layer: Layer) -> Layer:
    """The same, and whether it is a block device.  Raises StateError if it is not there."""
    if isinstance(layer.origin, NetworkOrigin):
        return layer
    status = await blocking.on_path(layer.origin, LOOK_S, os.stat, layer.origin)
    return replace(layer, is_device=stat.S_ISBLK(status.st_mode))


async def _taken(layer: Layer) -> int | None:
    """What its files take on the host; None if that cannot be told."""
    if isinstance(layer.origin, NetworkOrigin) or layer.is_device:
        return None
    statuses = [await blocking.on_path(path, LOOK_S, os.stat, path) for path in layer.paths]
    return sum(status.st_blocks * 512 for status in statuses)


async def _info(vm: Owner, disk: str, layer: Layer) -> Mapping[str, Any]:
    """What QEMU reads in an image's header, of that image alone."""
    try:
        node = imagechain.node([layer])
    except StateError as error:
        raise StateError(f"{vm.name}: {disk}: {error.message}", vm.otherwise) from None
    command = ["qemu-img", "info", "--force-share", "--output=json", f"json:{json.dumps(node)}"]
    what = f"{vm.name}: {disk}: the image {layer.origin} cannot be opened"
    said = await execution.output([*privileges.as_reader(vm.user), *command], LOOK_S, what, StateError)
    told: dict[str, Any] = json.loads(said)
    if told.get("encrypted"):
        raise _needs_vm(vm, f"{vm.name}: {disk}: the image {layer.origin} is encrypted")
    return told


def _backing(vm: Owner, disk: str, layer: Layer, told: Mapping[str, Any]) -> Layer | None:
    """What the image rests on, by its header.  Raises StateError if that does not tell enough."""
    name = told.get("full-backing-filename") or told.get("backing-filename")
    if not name or layer.format not in WITH_BACKING:
        return None
    if (form := told.get("backing-filename-format")) is None:
        rebase = ("qemu-img", "rebase", "-u", "-f", layer.format, "-b", name, "-F", "FORMAT", str(layer.origin))
        raise StateError(
            f"{vm.name}: {disk}: the image {layer.origin} does not tell the format of {name}, which it rests on",
            names.command(*rebase),
        )
    where = name.removeprefix("file:") if os.path.isabs(name.removeprefix("file:")) else origin.of_uri(name)
    if where is None:
        raise _needs_vm(vm, f"{vm.name}: {disk}: the image {layer.origin} rests on {name}")
    return Layer(form, where)


def _beside(overlay: Origin, name: str) -> str:
    """A path as it stands in an image's header: relative to that."""
    return str(Path(str(overlay)).parent / name)
