"""qcow2 files written out from a layout, and what qemu-img(1) says of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapmount.core.qcow2layout import Layout, Metadata

STEP = 1 << 20  # as FUSE asks


def write(path: Path, layout: Layout, read: Callable[[int, int], bytes], step: int = STEP) -> None:
    """Write the file as it would be read; `read` gives bytes of the disk, fewer where it ends."""
    with path.open("wb") as f:
        f.truncate(layout.size_bytes)
        for offset in range(0, layout.size_bytes, step):
            for part in layout.parts(offset, min(step, layout.size_bytes - offset)):
                f.seek(offset)
                f.write(part.data if isinstance(part, Metadata) else read(part.offset, part.length))
                offset += part.length


def write_metadata(path: Path, layout: Layout) -> None:
    """Write what is no disk's alone; all data is a hole."""
    with path.open("wb") as f:
        for offset in range(0, layout.metadata_bytes, STEP):
            for part in layout.parts(offset, min(STEP, layout.metadata_bytes - offset)):
                assert isinstance(part, Metadata)
                f.write(part.data)
        f.truncate(layout.size_bytes)


def assert_sound(path: Path) -> None:
    """No error, no leak."""
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("No errors were found on the image."), done.stdout


def assert_equal(path: Path, raw: Path) -> None:
    """The image, with its backing files, has the content of the raw file, and its size."""
    command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(path), str(raw)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Images are identical.\n"), done.stdout + done.stderr


def info(path: Path) -> dict[str, Any]:
    """What QEMU knows of the image itself."""
    command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)]
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return told


def mapped(path: Path) -> list[dict[str, Any]]:
    """What of the disk the image and its backing files hold."""
    command = ["qemu-img", "map", "--output=json", "-f", "qcow2", str(path)]
    told: list[dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return told
