"""Builds the test guest: a distribution's kernel and an initramfs of busybox, the writer and the QEMU guest agent.

Everything comes from the distribution's packages (downloaded, unpacked, not installed) and is cached in .cache/guest of
the source tree.  A guest boots in less than two seconds without KVM.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import lzma
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "guest"
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
EFI_MODULES = ("efivarfs",)  # which only load where the firmware is UEFI
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")  # Debian's name, Ubuntu's name
PROBE_S = 8
UNPACKING = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"\x1f\x8b": "gzip"}


@dataclass(frozen=True)
class Guest:
    """Kernel and initramfs: as boot loaders and firmware want them, and, since a guest without KVM takes long to unpack
    them, unpacked for a direct kernel boot.
    """

    kernel: Path
    initrd: Path
    unpacked_kernel: Path
    unpacked_initrd: Path


@functools.cache
def build() -> Guest:
    """The guest, built on first use; processes that build at once wait for one another."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build()


def _build() -> Guest:
    sources = b"".join((HERE / name).read_bytes() for name in ("guest.py", "init", "writer.c"))
    directory = CACHE / hashlib.sha256(sources).hexdigest()[:16]
    guest = Guest(*(directory / name for name in ("vmlinuz", "initrd.gz", "vmlinux", "initrd")))
    if guest.initrd.exists():
        return guest
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        work = Path(scratch)
        packages = work / "packages"
        for package in (*kernel_packages(KERNEL_PACKAGES), "qemu-guest-agent"):
            unpack(package, work / "debs", packages)
        directory.mkdir(exist_ok=True)
        shutil.copyfile(next((packages / "boot").glob("vmlinuz-*")), guest.kernel)
        guest.unpacked_kernel.write_bytes(_unpacked(guest.kernel.read_bytes()))
        _fill_root(work / "root", packages)
        guest.unpacked_initrd.write_bytes(_packed(work / "root"))
        (work / "initrd.gz").write_bytes(gzip.compress(guest.unpacked_initrd.read_bytes(), 1))
        (work / "initrd.gz").rename(guest.initrd)
    return guest


def kernel_packages(metas: tuple[str, ...]) -> list[str]:
    """The packages that hold the kernel and the modules of the first of these that the distribution has."""
    for meta in metas:
        shown = subprocess.run(["apt-cache", "depends", "--important", meta], capture_output=True, text=True)
        images = re.findall(r"Depends: (linux-image-\S*\d\S*)", shown.stdout)
        if images:
            modules = images[0].replace("linux-image-", "linux-modules-")  # a package of its own on Ubuntu
            known = subprocess.run(["apt-cache", "show", modules], capture_output=True)
            return [images[0], modules] if known.returncode == 0 else [images[0]]
    raise RuntimeError(f"none of {', '.join(metas)} is known to apt: run apt-get update")


def unpack(package: str, debs: Path, into: Path) -> None:
    """Download a package of the distribution and unpack it, without installing it."""
    debs.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", package], cwd=debs, check=True, capture_output=True)
    (deb,) = debs.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, into], check=True)


def _fill_root(root: Path, packages: Path) -> None:
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    (root / "sbin").mkdir()
    (root / "sbin" / "shutdown").write_text("#!/bin/sh\nexec poweroff -f\n")  # what the guest agent calls
    (root / "sbin" / "shutdown").chmod(0o755)
    subprocess.run(
        ["gcc", "-O2", "-static", "-Wall", "-Werror", "-o", root / "bin" / "writer", HERE / "writer.c"], check=True
    )
    agent = packages / "usr" / "sbin" / "qemu-ga"
    shutil.copy(agent, root / "bin" / "qemu-ga")
    _copy_libraries(agent, root)
    _copy_modules(packages, root)


def _copy_libraries(program: Path, root: Path) -> None:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def _copy_modules(packages: Path, root: Path) -> None:
    """Copy the drivers, uncompressed, with /modules/order and /modules/order-efi naming them in the order of their
    dependencies.
    """
    base = packages if (packages / "lib" / "modules").exists() else packages / "usr"
    (version,) = (path.name for path in (base / "lib" / "modules").iterdir())
    subprocess.run(["depmod", "-b", base, version], check=True)
    (root / "modules").mkdir()
    for file, modules in (("order", MODULES), ("order-efi", EFI_MODULES)):
        order: list[str] = []
        for module in modules:
            command = ["modprobe", "-d", str(base), "-S", version, "--show-depends", module]
            for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
                if line.startswith("insmod "):
                    source = Path(line.split()[1])
                    name = source.name.split(".ko")[0] + ".ko"
                    if name not in order:
                        order.append(name)
                        (root / "modules" / name).write_bytes(_uncompressed(source))
        (root / "modules" / file).write_text("".join(f"{name}\n" for name in order))


def _uncompressed(module: Path) -> bytes:
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", module], capture_output=True, check=True).stdout
    return module.read_bytes()


def _unpacked(kernel: bytes) -> bytes:
    """The ELF image in a kernel of the boot protocol from 2.08 on, as Debian and Ubuntu compress it.

    https://docs.kernel.org/arch/x86/boot.html: setup_sects, payload_offset, payload_length.
    """
    setup_sectors, (offset, length) = kernel[0x1F1], struct.unpack_from("<II", kernel, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    payload = kernel[begin : begin + length - 4]  # without the unpacked size, which the kernel's build appends
    (program,) = (name for magic, name in UNPACKING.items() if payload.startswith(magic))
    return subprocess.run([program, "-dc"], input=payload, capture_output=True, check=True).stdout


def _packed(root: Path) -> bytes:
    names = subprocess.run(["find", ".", "-print0"], cwd=root, capture_output=True, check=True).stdout
    command = ["cpio", "--null", "-o", "-H", "newc", "--quiet", "-R", "0:0"]
    return subprocess.run(command, cwd=root, input=names, capture_output=True, check=True).stdout


@functools.cache
def domain_type() -> str:
    """'kvm' where this host truly runs guests with it, else 'qemu' (TCG).

    A /dev/kvm that exists says little: nested virtualisation may be missing or hang every guest.  So a guest is run.
    """
    if not Path("/dev/kvm").exists():
        return "qemu"
    guest = build()
    command = ["qemu-system-x86_64", "-accel", "kvm", "-m", "128", "-nodefaults", "-nographic", "-no-reboot"]
    command += [
        "-kernel",
        str(guest.unpacked_kernel),
        "-initrd",
        str(guest.unpacked_initrd),
        "-append",
        "console=ttyS0 panic=-1 snapmount.probe",
    ]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return "qemu"
    return "kvm" if ended.returncode == 0 else "qemu"
