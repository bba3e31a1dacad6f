"""Disks that the test guest boots from: one with a boot loader, one that UEFI boots, and a root disk, ext4 with a
journal, whose first process adds line after line to a file on it.
"""

from __future__ import annotations

import re
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


EFI_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")


def fill_for_efi(raw: Path) -> None:
    """Make the image a FAT disk with a program that UEFI boots: the guest with its command line, and its agent."""
    built = guest.build()
    with tempfile.TemporaryDirectory() as directory:
        command_line, program = Path(directory, "cmdline"), Path(directory, "BOOTX64.EFI")
        command_line.write_text("console=ttyS0 panic=-1 snapmount.agent")
        _make_unified_image(program, {".cmdline": command_line, ".linux": built.kernel, ".initrd": built.initrd})
        subprocess.run(["mformat", "-i", raw, "-F", "-h", "64", "-s", "32", "::"], check=True)
        subprocess.run(["mmd", "-i", raw, "::/EFI", "::/EFI/BOOT"], check=True)
        subprocess.run(["mcopy", "-i", raw, program, "::/EFI/BOOT"], check=True)


def _make_unified_image(program: Path, sections: dict[str, Path]) -> None:
    """Put the files behind the sections of the stub, as systemd-stub(7) tells."""
    shown = subprocess.run(["objdump", "-p", "-h", EFI_STUB], capture_output=True, text=True, check=True).stdout
    alignment = int(re.findall(r"^SectionAlignment\s+(\w+)", shown, re.MULTILINE)[0], 16)
    places = re.findall(r"^ +\d+ \.\S+ +([0-9a-f]+)  ([0-9a-f]+) ", shown, re.MULTILINE)
    end = max(int(size, 16) + int(address, 16) for size, address in places)
    command: list[str | Path] = ["objcopy"]
    for name, file in sections.items():
        address = -(-end // alignment) * alignment
        command += ["--add-section", f"{name}={file}", "--change-section-vma", f"{name}={address:#x}"]
        end = address + file.stat().st_size
    subprocess.run([*command, EFI_STUB, program], check=True)


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
