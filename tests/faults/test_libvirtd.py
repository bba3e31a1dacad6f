"""libvirtd is down for a while: the view goes on, since QEMU serves it, and the commands say what they cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ..rig import libvirtd, traces, vm
from ..rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json, state_of
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm


def test_the_view_outlives_libvirtd_and_what_could_not_be_ended_ends_when_that_is_back(
    writer: vm.VM, mountpoint: Path
) -> None:
    snapmount(writer.name, mountpoint)
    before = read_direct(mountpoint / "vda.raw")
    with libvirtd.stopped():
        assert read_direct(mountpoint / "vda.raw") == before
        assert state_of(writer.name) == ("active", None)
        (shown,) = snapmount_json("list")
        message = refused("delete", writer.name, code=8)
        assert "libvirt cannot be reached" in message
        assert f"process {shown['server']['standby_pid']} tries on" in message
        assert f"snapmount delete {shown['id']}" in message
        assert state_of(writer.name)[0] == "leftover"
        log = Path(shown["server"]["log"])
        wait_for(lambda: "cannot be done yet: " in log.read_text(), "the standby has tried")
        assert state_of(writer.name)[0] == "leftover"
    wait_for(lambda: traces.found() == [], "the standby has undone it")
    assert not writer.has_job()


def test_an_unmount_while_libvirtd_is_away_ends_it_all_when_that_is_back(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    with libvirtd.stopped():
        subprocess.run(["umount", mountpoint], check=True)
        wait_for(lambda: state_of(writer.name)[0] == "leftover", "the server could not end it")
    wait_for(lambda: traces.found() == [], "the standby has undone it")
    assert not writer.has_job()


def test_a_leftover_can_be_deleted_before_its_standby_tries_again(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    with libvirtd.stopped():
        refused("delete", writer.name, code=8)
        standby = taken["server"]["standby_pid"]
        os.kill(standby, signal.SIGSTOP)
    snapmount("delete", taken["id"])
    assert traces.found() == []
    assert not writer.has_job()


def test_a_server_in_the_foreground_waits_for_libvirtd_to_come_back(writer: vm.VM, mountpoint: Path) -> None:
    """It has no standby."""
    with subprocess.Popen(
        [SNAPMOUNT, "--foreground", writer.name, mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        assert server.stdout.readline(), "the view is ready"
        log = Path(snapmount_json("list")[0]["server"]["log"])
        with libvirtd.stopped():
            server.terminate()
            wait_for(lambda: "cannot be done yet: libvirt cannot be reached" in log.read_text(), "it has tried")
        _, complaint = server.communicate(timeout=60)
    assert server.returncode == 0, complaint
    assert traces.found() == []
    assert not writer.has_job()


def test_the_view_outlives_a_restart_of_libvirtd(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    before = read_direct(mountpoint / "vdb.raw")
    with libvirtd.stopped():
        pass
    assert read_direct(mountpoint / "vdb.raw") == before
    snapmount("delete", writer.name)
    assert traces.found() == []
