"""A helper, the VM that disks of a snapshot are plugged into: where it has room for them, and their description for
libvirt.

Format: https://libvirt.org/formatdomain.html (hard drives, aliases).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

from ..errors import StateError
from . import domainxml, names
from .blocksize import DEFAULT_BLOCK_SIZE
from .helperdisk import PREFIXES

_UNITS = 7  # disks of a SCSI controller by libvirt's names, also where it could have more
# The first QEMU whose usb-storage hands its block sizes on to the disk behind it; before, it takes them and shows 512
# (commit 3089637461, "scsi: Don't ignore most usb-storage properties").
QEMU_USB_BLOCK_SIZES = (9, 0, 0)
# virDomainPCIAddressGetNextAddr(); the error's code is that of every internal one
_NO_SLOT = "No more available PCI slots"


def free_targets(domain_xml: str, bus: str, count: int) -> list[str]:
    """The first target names for that bus that the VM's disks leave free.

    Raises StateError if its SCSI controllers have no room for as many.
    """
    taken = {disk.name for disk in domainxml.disks(domain_xml)}
    candidates = _scsi_names(domain_xml) if bus == "scsi" else (_name(PREFIXES[bus], n) for n in itertools.count())
    found = list(itertools.islice((name for name in candidates if name not in taken), count))
    if len(found) < count:
        vm = domainxml.parse(domain_xml, "the domain's definition").findtext("name", "the VM")
        room = f"{len(found)} disk{'s' * (len(found) != 1)}"
        raise StateError(
            f"the scsi controllers of {vm} have names free for {room}, not for {count}",
            "--bus virtio, or add a controller to it",
        )
    return found


def _name(prefix: str, number: int) -> str:
    """vda to vdz, vdaa to vdzz, and so on."""
    letters = ""
    while number >= 0:
        number, letter = divmod(number, len(string.ascii_lowercase))
        letters, number = string.ascii_lowercase[letter] + letters, number - 1
    return prefix + letters


def _scsi_names(domain_xml: str) -> Iterator[str]:
    """The names for which there is a controller, and nothing at the place there that libvirt derives from the name
    (virDomainDiskDefAssignAddress).

    Where there was no controller of that or of a lower index, libvirt would plug one in with the disk, and leave it
    behind (qemuDomainAttachSCSIDisk).
    """
    devices = domainxml.parse(domain_xml, "the domain's definition").find("devices")
    if devices is None:
        return
    on_bus = [disk for disk in devices.findall("disk") if disk.find("target[@bus='scsi']") is not None]
    on_bus += devices.findall("hostdev[@type='scsi']")
    taken = {_place(address) for device in on_bus for address in device.findall("address[@type='drive']")}
    controllers = {each.get("index", "0") for each in devices.findall("controller[@type='scsi']")}
    for index in itertools.takewhile(lambda index: str(index) in controllers, itertools.count()):
        for unit in range(_UNITS):
            if (str(index), "0", "0", str(unit)) not in taken:
                yield _name(PREFIXES["scsi"], index * _UNITS + unit)


def _place(address: ElementTree.Element) -> tuple[str, ...]:
    return tuple(address.get(key, "0") for key in ("controller", "bus", "target", "unit"))


def buses_for(block_sizes: Iterable[int], qemu_version: tuple[int, ...] | None) -> tuple[str, ...]:
    """The buses on which disks of these logical block sizes keep them, so that partition tables are found; a version of
    QEMU that is not known is taken for an old one.
    """
    hands_on = qemu_version is not None and qemu_version >= QEMU_USB_BLOCK_SIZES
    is_usual = all(size == DEFAULT_BLOCK_SIZE for size in block_sizes)
    return tuple(bus for bus in PREFIXES if bus != "usb" or is_usual or hands_on)


def lacks_slot(complaint: str) -> bool:
    """Whether libvirt has refused a device, with these words, for want of a PCI slot."""
    return _NO_SLOT in complaint


def bus_with_room(domain_xml: str, buses: Iterable[str], count: int) -> str | None:
    """The first of these buses at which there is room for so many disks without a PCI slot for each."""
    for bus in buses:
        if bus != "virtio" and has_controller(domain_xml, bus):
            try:
                free_targets(domain_xml, bus, count)
            except StateError:
                continue
            return bus
    return None


def more_slots(domain_xml: str) -> str:
    """How the VM gets more PCI slots for disks, as a command and what to do with it.

    libvirt plugs no port into a running VM, nor (9.0) into a definition with `virsh attach-device --config`.
    """
    domain = domainxml.parse(domain_xml, "the domain's definition")
    is_pcie = domain.find("./devices/controller[@model='pcie-root']") is not None
    model, how_many = ("pcie-root-port", " for each disk") if is_pcie else ("pci-bridge", "")
    edit = names.command("virsh", "edit", domain.findtext("name", ""))
    return f"{edit}   (add <controller type='pci' model='{model}'/>{how_many}, shut it off and start it)"


def has_controller(domain_xml: str, bus: str) -> bool:
    """Whether the VM has what disks of that bus are plugged into.

    libvirt would hot-plug a SCSI controller with a disk, and leave it behind when the disk goes.
    """
    controllers = domainxml.parse(domain_xml, "the domain's definition").findall("./devices/controller")
    return bus == "virtio" or any(each.get("type") == bus and each.get("model") != "none" for each in controllers)


def disk_xml(
    domain_xml: str, file: str, *, alias: str, serial: str, bus: str, target: str, block_bytes: int = DEFAULT_BLOCK_SIZE
) -> str:
    """A raw, read-only disk over a file of the view, with logical blocks of that size, for the VM of that definition.

    It reads through the host's page cache, which reads ahead and which all readers of the view share.  An error is the
    guest's to see: QEMU must not stop the helper for it.
    """
    disk = ElementTree.Element("disk", type="file", device="disk")
    settings = {"cache": "writeback", "io": "threads", "error_policy": "report"}
    ElementTree.SubElement(disk, "driver", {"name": "qemu", "type": "raw", **settings})
    domain = domainxml.parse(domain_xml, "the domain's definition")
    domainxml.add_unlabelled_source(disk, file, domainxml.label_models(domain))
    ElementTree.SubElement(disk, "target", dev=target, bus=bus)
    domainxml.add_block_size(disk, block_bytes)
    ElementTree.SubElement(disk, "readonly")
    ElementTree.SubElement(disk, "serial").text = serial
    ElementTree.SubElement(disk, "alias", name=alias)
    return ElementTree.tostring(disk, encoding="unicode")
