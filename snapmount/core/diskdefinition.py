"""What a `<disk>` of a domain says, as a typed value: what snapmount decides by is read from that element here alone.

Each element and attribute that libvirt's schema has is decided: read here, passed on to scratch VMs, or neither, and
why; tests/test_diskdefinition.py names them all.  Format: https://libvirt.org/formatdomain.html (hard drives).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from xml.etree import ElementTree

from ..errors import SnapmountError
from .blocksize import DEFAULT_BLOCK_SIZE
from .imagechain import Layer
from .origin import Origin, of_source

# What changes which bytes a disk holds, or how they are reached, and is no part of the origin: who opens the image
# without the VM's QEMU would have to know it.
_UNTOLD = (
    "auth",
    "encryption",
    "source/auth",
    "source/cookies",
    "source/encryption",
    "source/initiator",
    "source/slices",
)

_UNCACHED = ("none", "directsync")  # cache.direct in qemu-system(1)


@dataclass(frozen=True)
class DiskDefinition:
    """A `<disk>` of a domain."""

    name: str  # <target dev=...>
    device: str  # disk, cdrom, floppy or lun
    kind: str  # <disk type=...>: file, block, network, volume, nvme, vhostuser, ...
    format: str  # raw, qcow2, ...
    origin: Origin  # '' for an empty drive
    alias: str = ""  # of a running VM's device
    has_iothread: bool = False  # whether a thread of its own serves it, and not QEMU's main loop
    logical_block_size: int = DEFAULT_BLOCK_SIZE  # bytes, as the guest is told
    is_readonly: bool = False  # to the guest
    is_shareable: bool = False  # QEMU lets others write to the image meanwhile
    is_uncached: bool = False  # QEMU writes to the image past the host's page cache
    is_transient: bool = False  # what the guest writes is thrown away when the VM ends
    data_file: Origin = ""  # where a qcow2 image keeps its clusters outside of itself; '' for in itself
    backing: tuple[Layer, ...] = ()  # what the image rests on, as far as the definition tells
    is_chain_whole: bool = False  # whether it tells that the last one rests on nothing
    untold: tuple[str, ...] = ()  # elements and attributes that say more of how to reach it than the origin does

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory of the host that QEMU shows as a FAT file system, read-only (vvfat)."""
        return self.kind == "dir" or self.format == "fat"


def disks(devices: ElementTree.Element | None) -> tuple[DiskDefinition, ...]:
    """The disks of a domain's `<devices>`, in their order.  Raises SnapmountError if a block size is no number."""
    if devices is None:
        return ()
    threaded = {
        controller.get("index", "0")
        for controller in devices.findall("./controller[@type='scsi']")
        if _has_iothread(controller)
    }
    return tuple(_disk(element, threaded) for element in devices.findall("./disk"))


def _has_iothread(element: ElementTree.Element) -> bool:
    """`<driver iothread=...>`, or its `<iothreads>`, since libvirt 10.0."""
    driver = element.find("driver")
    return driver is not None and ("iothread" in driver.attrib or driver.find("iothreads") is not None)


def _disk(element: ElementTree.Element, threaded_controllers: Collection[str]) -> DiskDefinition:
    return DiskDefinition(
        name=_attribute(element, "target", "dev", ""),
        device=element.get("device", "disk"),
        kind=element.get("type", "file"),
        format=_attribute(element, "driver", "type", "raw"),
        origin=of_source(element.find("source")),
        alias=_attribute(element, "alias", "name", ""),
        has_iothread=_has_iothread(element) or _controller(element) in threaded_controllers,
        logical_block_size=_block_size(_attribute(element, "blockio", "logical_block_size", "0")),
        is_readonly=element.find("readonly") is not None,
        is_shareable=element.find("shareable") is not None,
        is_uncached=_attribute(element, "driver", "cache", "") in _UNCACHED,
        is_transient=element.find("transient") is not None,
        data_file=of_source(element.find("./source/dataStore/source")),
        backing=_backing(element),
        is_chain_whole=any(each.find("source") is None for each in element.iter("backingStore")),
        untold=_untold(element),
    )


def _untold(element: ElementTree.Element) -> tuple[str, ...]:
    found = [path for path in _UNTOLD if element.find(path) is not None]
    source = element.find("source")
    query = [] if source is None else [f"source/@{name}" for name in ("query",) if name in source.attrib]
    return (*found, *query)


def _backing(element: ElementTree.Element) -> tuple[Layer, ...]:
    """Those that `<backingStore>` tells of, each within the one before; an empty one tells that there is no more."""
    return tuple(
        Layer(_attribute(each, "format", "type", "raw"), of_source(source), is_device=each.get("type") == "block")
        for each in element.iter("backingStore")
        if (source := each.find("source")) is not None
    )


def _attribute(element: ElementTree.Element, child: str, attribute: str, default: str) -> str:
    found = element.find(child)
    return default if found is None else found.get(attribute, default)


def _block_size(text: str) -> int:
    """libvirt writes 0, or nothing, for QEMU's default."""
    if not (text.isascii() and text.isdecimal()):
        raise SnapmountError(f"a disk's logical_block_size is no number: {text[:20]!r}")
    return int(text) or DEFAULT_BLOCK_SIZE


def _controller(disk: ElementTree.Element) -> str | None:
    """The index of the SCSI controller that the disk is on."""
    target, address = disk.find("target"), disk.find("address[@type='drive']")
    is_scsi = target is not None and target.get("bus") == "scsi"
    return address.get("controller", "0") if is_scsi and address is not None else None
