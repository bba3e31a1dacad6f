"""What a snapshot's disk is called as a disk of another VM, its helper.

Format: https://libvirt.org/formatdomain.html (hard drives, aliases).
"""

from __future__ import annotations

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
