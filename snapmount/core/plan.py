"""What a snapshot will be, decided before anything is made: which disks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import NotFoundError, StateError
from . import helperdisk, names
from .diskdefinition import DiskDefinition
from .leftout import LeftOut


@dataclass(frozen=True)
class Choice:
    """Which disks the user wants: all that can be, or `only` those, without those of `exclude`."""

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    command: tuple[str, ...] = ("snapmount", "VM", "MOUNTPOINT")  # what was called, without options for disks

    def without(self, refused: Collection[str], chosen: Sequence[DiskDefinition]) -> str | None:
        """The command that leaves the refused ones out too; None if none of the chosen would remain."""
        rest = [disk.name for disk in chosen if disk.name not in refused]
        if not rest:
            return None
        option, named = ("--disk", rest) if self.only else ("--exclude-disk", [*self.exclude, *refused])
        return names.command(*self.command, *(word for name in named for word in (option, name)))


@dataclass(frozen=True)
class Selection:
    """The disks of a snapshot, in the VM's order, and those that are not part of it."""

    chosen: tuple[DiskDefinition, ...]
    left_out: tuple[LeftOut, ...]


def select(vm: str, disks: Sequence[DiskDefinition], choice: Choice) -> Selection:
    """Choose the disks.

    CD-ROMs, floppies, empty drives, directories of the host, transient disks and attached disks of other snapshots are
    left out.  Raises NotFoundError for a name that the VM does not have, and if no disk remains.
    """
    known = [disk.name for disk in disks]
    for name in (*choice.only, *choice.exclude):
        if name not in known:
            raise NotFoundError(f"{vm}: there is no disk {name!r}; the VM has {', '.join(known) or 'no disks'}")
    chosen, left_out = [], []
    for disk in disks:
        why = _reason_to_leave_out(disk, choice)
        if why and disk.name in choice.only:
            raise StateError(f"{vm}: {disk.name} cannot be part of a snapshot: {why}")
        if why:
            left_out.append(LeftOut(disk.name, why))
        else:
            chosen.append(disk)
    for disk in chosen:
        if not names.is_disk_name(disk.name):
            raise StateError(
                f"{vm}: the disk name {disk.name!r} cannot be a file name; libvirt allows letters, digits and '_'"
            )
    twice = {disk.name for disk in chosen if known.count(disk.name) > 1}
    if twice:
        raise StateError(f"{vm}: more than one disk is called {' or '.join(sorted(twice))}")
    if not chosen:
        raise NotFoundError(f"{vm}: no disk is left to take a snapshot of; the VM has {', '.join(known) or 'no disks'}")
    return Selection(tuple(chosen), tuple(left_out))


def refuse_writers(
    vm: str, faults: Mapping[str, str], chosen: Sequence[DiskDefinition], choice: Choice, otherwise: str | None = None
) -> None:
    """Raise StateError where chosen disks can be written past the VM's QEMU.

    How, follows the disk's name: 'is open for writing by ...'.  `otherwise` is to be tried where no disk would remain.
    """
    if faults:
        told = "; ".join(f"{name} {fault}" for name, fault in faults.items())
        raise StateError(
            f"{vm}: {told}: writes that do not pass this VM's QEMU would show in the snapshot",
            choice.without(faults, chosen) or otherwise,
        )


def check_bypass(vm: str, chosen: Sequence[DiskDefinition], choice: Choice) -> None:
    """Raise StateError for disks that can be written past the VM's QEMU.  They must be excluded by name: silence would
    pass for a whole snapshot.
    """
    faults = {disk.name: how for disk in chosen if (how := _bypass(disk))}
    edit = f"{names.command('virsh', 'edit', vm)}   (where nobody else writes to it: to take <shareable/> away)"
    is_shared = all(disk.is_shareable for disk in chosen if disk.name in faults)
    refuse_writers(vm, faults, chosen, choice, edit if is_shared else None)


def _bypass(disk: DiskDefinition) -> str | None:
    """How the disk can be written past the VM's QEMU; None if its definition tells of no way."""
    if disk.device == "lun":
        return "is passed through to the guest (device='lun')"
    if disk.kind in ("vhostuser", "vhostvdpa"):
        return f"is served by another process ({disk.kind})"
    if disk.is_shareable and not disk.is_readonly:
        return "may be shared with other VMs and hosts (<shareable/>)"
    return None


def _reason_to_leave_out(disk: DiskDefinition, choice: Choice) -> str | None:
    if disk.device in ("cdrom", "floppy"):
        return {"cdrom": "CD-ROM", "floppy": "floppy"}[disk.device]
    if not disk.origin:
        return "empty drive"
    if disk.is_directory:  # no image: it is as the host's directory is now, and the guest cannot write to it
        return "a directory of the host"
    if disk.is_transient:  # libvirt has no backup jobs for them
        return "transient: what the guest writes to it is thrown away"
    snapshot = helperdisk.snapshot_of(disk.alias)
    if snapshot:  # it could not be detached while the job runs, and two snapshots could read each other in a circle
        return f"attached, from snapshot {snapshot}"
    if disk.name in choice.exclude:
        return "excluded"
    if choice.only and disk.name not in choice.only:
        return "not chosen"
    return None
