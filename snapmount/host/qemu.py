"""Finds QEMU's processes: by the files in which libvirt keeps their ids, and by the uuid in their command lines.

The name of such a file proves nothing: libvirt escapes the VM's name in it as in XML (`a&apos;b.pid`,
virPidFileBuildPath), and a VM that is shut off can be renamed.  A command line alone proves nothing either: any user of
the host can run a program with one like it.  Both together do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Qemu:
    """The QEMU that a VM runs in."""

    pid: int
    pid_file: Path  # libvirt's


def find(uuid: str, directory: Path) -> Qemu | None:
    """The QEMU of the VM of that uuid, of those whose ids libvirt keeps in this directory; None if there is none."""
    return next((qemu for qemu in _listed(directory) if has_uuid(_command_line(qemu.pid), uuid)), None)


def has_uuid(command_line: bytes, uuid: str) -> bool:
    """Whether this is the command line of that VM's QEMU, as proc_pid_cmdline(5) shows it."""
    return (b"-uuid", uuid.encode()) in pairwise(command_line.split(b"\0"))


def _listed(directory: Path) -> Iterator[Qemu]:
    for file in sorted(directory.glob("*.pid")):
        try:
            yield Qemu(int(file.read_text()), file)
        except (OSError, ValueError):
            continue  # its VM has just ended, or starts


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
