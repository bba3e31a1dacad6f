"""Who may look into what: nobody but root and QEMU's user, whatever the umask; all users where that was asked for."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..rig import libiscsi, vm
from ..rig.command import snapmount, snapmount_json

pytestmark = pytest.mark.vm
RUNTIME = Path("/run/snapmount")


def open_to_others(directory: Path) -> Iterator[str]:
    """Whatever others could read, write or search in the directory and below it, but for links and sockets."""
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        is_looked_at = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        if is_looked_at and stat.S_IMODE(status.st_mode) & 0o077:
            yield f"{path}: {stat.S_IMODE(status.st_mode):03o}"


def reads(user: str, path: Path) -> bool:
    """Whether that user can read from the file, or list the directory."""
    command = ["ls" if path.is_dir() else "cat", str(path)]
    return subprocess.run(command, user=user, group=65534, extra_groups=[], capture_output=True).returncode == 0


def test_all_that_a_snapshot_makes_is_closed_to_others_whatever_the_umask(writer: vm.VM, mountpoint: Path) -> None:
    libiscsi.skip_where_missing()
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    iscsi = ("--iscsi", "--target", "tgt", "--portal", portal)
    taken = snapmount_json(*iscsi, "--verbose", writer.name, mountpoint, umask=0)
    booted = snapmount_json("boot", "--wait-for", "1s", taken["id"], umask=0)
    snapmount("list", umask=0)
    made = [RUNTIME, Path(taken["scratch"]["directory"]), Path(booted["overlay_directory"])]
    assert [found for directory in made for found in open_to_others(directory)] == []
    present = {path.name for path in (RUNTIME / taken["id"]).rglob("*")}
    assert {"record.json", "credentials.json", "log", "lock", "tgtd.log", "tgtd.process", "scratch-vm"} <= present
    assert {path.name for path in made[2].iterdir()} == {"vda.qcow2", "vdb.qcow2", "console.log"}
    snapmount("delete", "--force", taken["id"])


def test_as_root_other_users_see_the_files_only_with_allow_other(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    assert (reads("nobody", mountpoint), reads("nobody", mountpoint / "vda.raw")) == (False, False)
    assert reads("libvirt-qemu", mountpoint / "vda.raw")
    snapmount("umount", mountpoint)

    snapmount("--allow-other", writer.name, mountpoint)
    assert (reads("nobody", mountpoint), reads("nobody", mountpoint / "vda.raw")) == (True, True)
    assert stat.S_IMODE((mountpoint / "vda.raw").stat().st_mode) == 0o444
    assert os.access(mountpoint / "vda.raw", os.W_OK) is False
    snapmount("umount", mountpoint)
