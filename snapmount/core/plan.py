"""What a snapshot will be, decided before anything is made: which disks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import NotFoundError, StateError
from . import attachment, names
from .diskdefinition import DiskDefinition

QEMU_NBD_IN_IOTHREADS = (8, 2, 3)  # the first version that can


@dataclass(frozen=True)
class LeftOut:
    """A disk, or something else of the VM, that is not part of the snapshot, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Selection:
    """The disks of a snapshot, in the VM's order, and those that are not part of it."""

    chosen: tuple[DiskDefinition, ...]
    left_out: tuple[LeftOut, ...]


def select(vm: str, disks: Sequence[DiskDefinition], only: Collection[str], exclude: Collection[str]) -> Selection:
    """Choose the disks: all that can be, or `only` those, without those of `exclude`.

    CD-ROMs, floppies, empty drives and attached disks of other snapshots are left out.  Raises NotFoundError for a name
    that the VM does not have, StateError for a disk whose guest writes bypass QEMU's block layer (it must be excluded
    by name: silence would pass for a whole snapshot), and where no disk remains.
    """
    known = [disk.name for disk in disks]
    for name in (*only, *exclude):
        if name not in known:
            raise NotFoundError(f"{vm}: there is no disk {name!r}; the VM has {', '.join(known) or 'no disks'}")
    chosen, left_out = [], []
    for disk in disks:
        why = _reason_to_leave_out(disk, only, exclude)
        if why and disk.name in only:
            raise StateError(f"{vm}: {disk.name} cannot be part of a snapshot: {why}")
        if why:
            left_out.append(LeftOut(disk.name, why))
        else:
            _refuse_bypass(vm, disk)
            chosen.append(disk)
    twice = {disk.name for disk in chosen if known.count(disk.name) > 1}
    if twice:
        raise StateError(f"{vm}: more than one disk is called {', '.join(sorted(twice))}")
    if not chosen:
        raise NotFoundError(f"{vm}: no disk is left to take a snapshot of; the VM has {', '.join(known) or 'no disks'}")
    return Selection(tuple(chosen), tuple(left_out))


def check_iothreads(vm: str, chosen: Sequence[DiskDefinition], qemu_version: tuple[int, ...] | None) -> None:
    """Raise StateError where a disk is served by an iothread, in a QEMU that would crash as soon as an NBD client of
    its backup job goes away; a version that is not known is taken for such a one.

    Before 8.2.3 the NBD server lets go of a client in the iothread, and since the mending of CVE-2024-7409, which
    distributions have put into older versions, that fails an assertion (nbd_blockdev_client_closed).  QEMU's commit
    f816310d0c32, "nbd/server: only traverse NBDExport->clients from main loop thread".
    """
    if qemu_version and qemu_version >= QEMU_NBD_IN_IOTHREADS:
        return
    threaded = [disk.name for disk in chosen if disk.has_iothread]
    if threaded:
        version = ".".join(map(str, qemu_version)) if qemu_version else "of an unknown version"
        needed = ".".join(map(str, QEMU_NBD_IN_IOTHREADS))
        exclude = [word for name in threaded for word in ("--exclude-disk", name)]
        raise StateError(
            f"{vm}: {', '.join(threaded)} uses an iothread, and the VM's QEMU {version} would crash at the end of a "
            f"snapshot of such a disk; QEMU {needed} and later do not",
            f"{names.command('snapmount', vm, 'MOUNTPOINT', *exclude)}   (or start the VM without the iothread)",
        )


def _reason_to_leave_out(disk: DiskDefinition, only: Collection[str], exclude: Collection[str]) -> str | None:
    if disk.device in ("cdrom", "floppy"):
        return {"cdrom": "CD-ROM", "floppy": "floppy"}[disk.device]
    if not disk.origin:
        return "empty drive"
    snapshot = attachment.snapshot_of(disk.alias)
    if snapshot:  # it could not be detached while the job runs, and two snapshots could read each other in a circle
        return f"attached, from snapshot {snapshot}"
    if disk.name in exclude:
        return "excluded"
    if only and disk.name not in only:
        return "not chosen"
    return None


def _refuse_bypass(vm: str, disk: DiskDefinition) -> None:
    passed_through = disk.device == "lun" or disk.kind in ("vhostuser", "vhostvdpa")
    if passed_through:
        what = (
            "passed through to the guest (device='lun')"
            if disk.device == "lun"
            else f"served by another process ({disk.kind})"
        )
        raise StateError(
            f"{vm}: {disk.name} is {what}: its writes do not pass QEMU's block layer, so QEMU cannot hold its state",
            names.command("snapmount", vm, "MOUNTPOINT", "--exclude-disk", disk.name),
        )
    if not names.is_disk_name(disk.name):
        raise StateError(
            f"{vm}: the disk name {disk.name!r} cannot be a file name; libvirt allows letters, digits and '_'"
        )
