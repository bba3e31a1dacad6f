"""What a failed test has left is removed, and the next one finds the host as it should be."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from .rig import leftovers, traces, vm
from .rig.command import snapmount, snapmount_json


@pytest.mark.vm
def test_a_dead_snapshot_a_vm_and_a_job_that_a_test_has_left_are_removed(clean: None, mountpoint: Path) -> None:
    disks = [vm.Disk("vda")]
    with vm.running(f"{vm.PREFIX}-stays", disks, paused=True) as stays:
        with vm.running(f"{vm.PREFIX}-left", disks, paused=True) as left:
            server = snapmount_json(left.name, mountpoint)["server"]
            for process in ("standby_pid", "pid"):
                os.kill(server[process], signal.SIGKILL)
            (traces.RUNTIME / "broken").mkdir()
            stays.begin_foreign_backup()
            leftovers.remove({left.name})
            assert traces.found() == []
            assert left.name not in leftovers.names()
        assert not stays.has_job()
        snapmount(stays.name, mountpoint)
        snapmount("delete", stays.name)
