"""What the disks of a VM lie on that is measured: context managers, each of which yields a raw and a qcow2 disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from reading import MIB, make_image

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from snapmount.host import fiemap
from tests.rig import clones, filesystems, vm

DISK_BYTES = 128 * MIB
MANY = DISK_BYTES // clones.BLOCK // 2  # extents: every other block
GROUP = "snapmount-bench"
CONTROL = Path("/dev/mapper/control")


@dataclass(frozen=True)
class Place:
    """Two disks on one kind of storage."""

    disks: list[vm.Disk]
    images: list[Path]  # of the disks: files, or block devices
    around: Path  # the directory with the clones in it

    def frozen(self) -> Path:
        """The clone of the first disk, which is raw, while there is a snapshot."""
        name = self.images[0].name
        (path,) = (path for path in self.around.rglob(f"{name}*") if "snapmount-" in str(path.relative_to(self.around)))
        return path

    def extents(self) -> int:
        """Of the images; 0 of devices."""
        return sum(_extents(image) for image in self.images if image.is_file())


def _extents(image: Path) -> int:
    descriptor = os.open(image, os.O_RDONLY)
    try:
        return fiemap.count(descriptor)
    finally:
        os.close(descriptor)


def _full(raw: Path) -> None:
    make_image(raw, DISK_BYTES)


def _fragmented(raw: Path) -> None:
    clones.fragmented(raw, MANY)


@contextlib.contextmanager
def on_files(file_system: str, fill: Callable[[Path], None] = _full) -> Iterator[Place]:
    """Image files, the raw one filled in that way."""
    with filesystems.mounted(12 * DISK_BYTES // MIB, file_system) as around:
        disks = [
            vm.Disk("vda", "raw", DISK_BYTES, fill=fill, place=around),
            vm.Disk("vdb", "qcow2", DISK_BYTES, fill=_full, place=around),
        ]
        yield Place(disks, [around / "vda.img", around / "vdb.qcow2"], around)


@contextlib.contextmanager
def on_thin_volumes() -> Iterator[Place]:
    """Volumes of a thin pool, in a volume group on a loop device."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snapmount-bench-", dir=vm.IMAGES)))
        image = directory / "image"
        with image.open("wb") as f:
            f.truncate(12 * DISK_BYTES)
        _lvm2("vgcreate", GROUP, str(vm.loop_device(image, stack)))
        stack.callback(_lvm2, "vgremove", "--yes", GROUP)
        _lvm2("lvcreate", "--yes", "--thinpool", "pool", "--extents", "90%FREE", GROUP)
        for name in ("vda", "vdb"):
            _lvm2("lvcreate", "--yes", "--thin", "--virtualsize", f"{2 * DISK_BYTES}b", "--name", name, f"{GROUP}/pool")
        around = Path("/dev", GROUP)
        images = [around / "vda", around / "vdb"]
        disks = [
            vm.Disk("vda", "block", DISK_BYTES, fill=_full, device=images[0]),
            vm.Disk("vdb", "qcow2-block", DISK_BYTES, fill=_full, device=images[1]),
        ]
        yield Place(disks, images, around)


def _lvm2(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def lacking(kind: str) -> str | None:
    """What this host lacks for it."""
    if KINDS[kind] is not on_thin_volumes:
        return None
    try:
        CONTROL.open("rb").close()
    except OSError:
        return "this kernel has no device mapper"
    return None


KINDS: dict[str, Callable[[], AbstractContextManager[Place]]] = {
    "reflink, few extents": lambda: on_files("xfs"),
    "reflink, many extents": lambda: on_files("xfs", _fragmented),
    "btrfs": lambda: on_files("btrfs"),
    "lvm thin": on_thin_volumes,
}
