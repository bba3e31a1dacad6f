"""libvirtd is down for a while: the view goes on, since QEMU serves it, and the commands say what they cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..rig import libvirtd, traces, vm
from ..rig.command import read_direct, refused, snapmount, snapmount_json, state_of

pytestmark = pytest.mark.vm


def test_the_view_outlives_libvirtd(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    before = read_direct(mountpoint / "vda.raw")
    with libvirtd.stopped():
        assert read_direct(mountpoint / "vda.raw") == before
        assert state_of(writer.name) == ("active", None)
        message = refused("delete", writer.name, code=8)
        assert "libvirt cannot be reached" in message
        assert f"snapmount delete {snapmount_json('list')[0]['id']}" in message
        assert state_of(writer.name)[0] == "leftover"
    assert writer.has_job()
    snapmount("delete", writer.name)
    assert not writer.has_job()


def test_the_view_outlives_a_restart_of_libvirtd(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    before = read_direct(mountpoint / "vdb.raw")
    with libvirtd.stopped():
        pass
    assert read_direct(mountpoint / "vdb.raw") == before
    snapmount("delete", writer.name)
    assert traces.found() == []
