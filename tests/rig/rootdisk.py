"""Disks that the test guest boots from: one with a boot loader, and a root disk, ext4 with a journal, whose first
process adds line after line to a file on it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from . import guest

_INIT = """\
#!/bin/busybox sh
n=$(wc -l </log)
echo "root disk holds lines=$n"
echo "guest is up"
while :; do n=$((n + 1)); echo "$n" >>/log && sync && echo "lines=$n"; done
"""


_LOADER = """\
DEFAULT guest
LABEL guest
    KERNEL {kernel}
    INITRD {initrd}
    APPEND console=ttyS0 panic=-1 snapmount.root=vdb
"""


def fill_with_loader(raw: Path) -> None:
    """Make the image a FAT disk whose boot sector loads the guest, with its root on vdb."""
    built = guest.build()
    subprocess.run(["mformat", "-i", raw, "-F", "-h", "64", "-s", "32", "::"], check=True)
    subprocess.run(["syslinux", "--install", raw], check=True)
    with tempfile.TemporaryDirectory() as directory:
        settings = Path(directory) / "syslinux.cfg"
        settings.write_text(_LOADER.format(kernel=built.kernel.name, initrd=built.initrd.name))
        subprocess.run(["mcopy", "-i", raw, built.kernel, built.initrd, settings, "::"], check=True)


def fill(raw: Path) -> None:
    """Make the file system in the image, which has its size already."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for name in ("bin", "sbin", "dev", "proc", "sys"):
            (root / name).mkdir()
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for name in ("sh", "sync", "wc"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "sbin" / "init").write_text(_INIT)
        (root / "sbin" / "init").chmod(0o755)
        (root / "log").touch()
        subprocess.run(["mkfs.ext4", "-q", "-d", root, raw], check=True)


def lines(image: Path) -> list[int]:
    """The lines in the file, as whoever mounts the disk sees them; recovers the journal in the image."""
    subprocess.run(["e2fsck", "-fy", image], capture_output=True)
    shown = subprocess.run(["debugfs", "-R", "cat /log", image], capture_output=True, text=True, check=True).stdout
    return [int(line) for line in shown.split()]
