"""A snapshot's disk as a disk of another VM, its helper: what it is called there, and its description for libvirt.

Format: https://libvirt.org/formatdomain.html (hard drives, aliases).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Collection, Iterator
from xml.etree import ElementTree

from . import domainxml

# What libvirt can hot-plug a read-only disk on (qemuDomainAttachDeviceDiskLiveInternal), with its names for targets.
PREFIXES = {"virtio": "vd", "scsi": "sd", "usb": "sd"}
_ALIAS = "ua-snapmount-"  # libvirt insists on ua- for what is not of its own making
SERIAL_MAX = 20  # bytes; VIRTIO_BLK_ID_BYTES in the virtio specification


def serial(snapshot_id: str, disk: str) -> str:
    """By which the guest knows the disk: '84b8ec7e-vda', in /dev/disk/by-id for instance."""
    return f"{snapshot_id}-{disk}"[:SERIAL_MAX]


def alias(snapshot_id: str, disk: str) -> str:
    """By which libvirt knows the device: what tells ours from all others.  libvirt admits it once in a VM."""
    return f"{_ALIAS}{snapshot_id}-{disk}"


def snapshot_of(alias: str) -> str | None:
    """The id of the snapshot whose disk the device of this alias is; None for a device that is not ours."""
    return alias.removeprefix(_ALIAS).partition("-")[0] if alias.startswith(_ALIAS) else None


def device(bus: str, serial: str) -> str:
    """Its device file in a Linux guest with udev; a pattern where the rest of the name is up to the guest."""
    return f"/dev/disk/by-id/virtio-{serial}" if bus == "virtio" else f"/dev/disk/by-id/*_{serial}*"


def free_targets(domain_xml: str, bus: str, count: int) -> list[str]:
    """The first target names for that bus that the VM's disks leave free."""
    taken = {disk.name for disk in domainxml.disks(domain_xml)}
    return list(itertools.islice(_untaken(PREFIXES[bus], taken), count))


def _untaken(prefix: str, taken: Collection[str]) -> Iterator[str]:
    """vda to vdz, vdaa to vdzz, and so on, without those that are taken."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            name = prefix + "".join(letters)
            if name not in taken:
                yield name


def has_controller(domain_xml: str, bus: str) -> bool:
    """Whether the VM has what disks of that bus are plugged into.

    libvirt would hot-plug a SCSI controller with a disk, and leave it behind when the disk goes.
    """
    controllers = domainxml.parse(domain_xml, "the domain's definition").findall("./devices/controller")
    return bus == "virtio" or any(each.get("type") == bus and each.get("model") != "none" for each in controllers)


def disk_xml(domain_xml: str, file: str, *, alias: str, serial: str, bus: str, target: str) -> str:
    """A raw, read-only disk over a file of the view, for the VM of that definition.

    It reads through the host's page cache, which reads ahead and which all readers of the view share.  An error is the
    guest's to see: QEMU must not stop the helper for it.
    """
    disk = ElementTree.Element("disk", type="file", device="disk")
    settings = {"cache": "writeback", "io": "threads", "error_policy": "report"}
    ElementTree.SubElement(disk, "driver", {"name": "qemu", "type": "raw", **settings})
    domain = domainxml.parse(domain_xml, "the domain's definition")
    domainxml.add_unlabelled_source(disk, file, domainxml.label_models(domain))
    ElementTree.SubElement(disk, "target", dev=target, bus=bus)
    ElementTree.SubElement(disk, "readonly")
    ElementTree.SubElement(disk, "serial").text = serial
    ElementTree.SubElement(disk, "alias", name=alias)
    return ElementTree.tostring(disk, encoding="unicode")
