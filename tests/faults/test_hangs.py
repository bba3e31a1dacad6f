"""QEMU answers nobody for a while: reads end at their deadline, and a snapshot can be ended all the same."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ..rig import prefix, traces, vm
from ..rig.command import SNAPMOUNT, assert_reads_fail, read_direct, snapmount
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SEED = 7


def test_a_read_that_qemu_does_not_answer_fails_at_its_deadline_alone(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount("--read-timeout", "1", own_vm.name, mountpoint)
    files = [mountpoint / "vda.raw", mountpoint / "vdb.raw"]
    qemu = own_vm.qemu_pid()
    os.kill(qemu, signal.SIGSTOP)
    try:
        assert_reads_fail(files[0])
        assert (mountpoint / "snapshot.json").read_bytes(), "the mount lives"
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert prefix.prove(SEED, [read_direct(file) for file in files]) > 0
    snapmount("delete", own_vm.name)


def test_a_snapshot_can_be_deleted_while_a_read_hangs(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount("--read-timeout", "1000", own_vm.name, mountpoint)
    qemu = own_vm.qemu_pid()
    os.kill(qemu, signal.SIGSTOP)
    with subprocess.Popen(["cat", mountpoint / "vda.raw"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        try:
            wait_for(lambda: waits_for_fuse(reader.pid), "the reader hangs")
            deleting = subprocess.Popen([SNAPMOUNT, "delete", own_vm.name])
            _, complaint = reader.communicate(timeout=60)
            assert reader.returncode != 0
            assert str(mountpoint).encode() in complaint, "EIO, or ENOTCONN where the kernel asks again"
        finally:
            os.kill(qemu, signal.SIGCONT)
    assert deleting.wait(timeout=60) == 0
    assert traces.found() == []


def waits_for_fuse(pid: int) -> bool:
    """Whether the process sleeps until a request of it is answered."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
