"""The programs that list a directory, or tell how full a file system is, on a view whose disks cannot be read."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .command import assert_reads_fail

LISTS = ["ls -la .", "find . -ls", "find . -type f -printf %s", "du -a .", "stat * .", "rsync -an . {target}"]


def assert_lists_what_cannot_be_read(mountpoint: Path, disk: str, size: int) -> None:
    """Nobody has looked at the disk before its point in time was lost: all that lists the view tells of it, and all
    that reads it fails.
    """
    for command in LISTS:
        words = command.format(target=mountpoint.with_suffix(".copy"))
        done = subprocess.run(["bash", "-c", words], cwd=mountpoint, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(mountpoint)}
    assert sizes[f"{disk}.raw"] == size
    assert sizes[f"{disk}.map"] == sizes[f"{disk}.qcow2"] == 0, "it is not known"
    assert sizes["domain.xml"] == len((mountpoint / "domain.xml").read_bytes()) > 0
    assert_no_disk_is_full(mountpoint)
    for kind in ("raw", "qcow2", "map"):
        assert_reads_fail(mountpoint / f"{disk}.{kind}")
    for kind in ("qcow2", "map"):
        assert_no_empty_copy(mountpoint, f"{disk}.{kind}")


def assert_no_empty_copy(mountpoint: Path, name: str) -> None:
    """A file whose size is not known, and is told as 0, is an error to who copies it, and not empty."""
    target = mountpoint.with_suffix(".copy")
    for command in ("tar -cf {target} {name}", "rsync -a {name} {target}", "cp {name} {target}"):
        words = command.format(name=name, target=target)
        done = subprocess.run(["bash", "-c", words], cwd=mountpoint, capture_output=True)
        target.unlink(missing_ok=True)
        assert done.returncode != 0, command


def assert_no_disk_is_full(mountpoint: Path) -> None:
    """As of proc(5): `df` has no figures of it, and does not show it unless it is asked for."""
    assert shutil.disk_usage(mountpoint) == (0, 0, 0)
    for option in ("-k", "-i"):
        told = subprocess.run(["df", option, mountpoint], capture_output=True, text=True, check=True).stdout
        assert told.splitlines()[1].split()[1:] == ["0", "0", "0", "-", str(mountpoint)]
        shown = subprocess.run(["df", option], capture_output=True, text=True).stdout
        assert str(mountpoint) not in shown
