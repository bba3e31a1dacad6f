"""Images that QEMU encrypts (LUKS within qcow2), with the passphrase "pass"."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .libvirtd import wait_for

OPTIONS = [
    "--object",
    "secret,id=key,data=pass",
    "-o",
    "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
]


def encrypt(plain: Path, image: Path) -> None:
    """Make the image, with what the plain one holds."""
    command = ["qemu-img", "convert", "-O", "qcow2", *OPTIONS, str(plain), str(image)]
    # QEMU measures first how fast it derives keys: now and then it is "unable to get accurate CPU usage"
    wait_for(lambda: subprocess.run(command).returncode == 0, f"{image.name} is encrypted")
