"""What can be done with a snapshot of any source can be done with one by storage: LUNs, scratch VMs, an end at a time,
recovery also after a restart of the host, an ordinary user's VMs.  And with one whose disks are URLs, nothing of that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from snapmount.core.limits import FLOOR_BYTES

from ...rig import clones, copies, filesystems, libiscsi, servers, traces, vm
from ...rig.account import Account
from ...rig.command import read_direct, refused, snapmount, snapmount_json
from ...rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
STORAGE = ("--source", "storage")
URL = "https://filer.example/snapshots/7"
HOOK = f"""#!/bin/sh
case $1 in
    plan) echo '{{"pause_s": 0}}' ;;
    status) echo '{{"frozen": "{URL}"}}' ;;
    *) echo '{{}}' ;;
esac
"""


def fill(path: Path) -> None:
    """Random data here and there."""
    with path.open("r+b") as f:
        for start in (0, 3 * vm.MIB, path.stat().st_size - 5000):
            f.seek(start)
            f.write(os.urandom(5000))


@pytest.fixture(scope="module")
def places(libvirt: None) -> Iterator[dict[str, Path]]:
    """Directories on XFS and btrfs."""
    with filesystems.mounted(400, "xfs") as xfs, filesystems.mounted(400, "btrfs") as btrfs:
        yield {"xfs": xfs, "btrfs": btrfs}


@pytest.fixture(scope="module")
def shared(places: dict[str, Path]) -> Iterator[vm.VM]:
    """A VM that is shut off, with a disk on each."""
    disks = [vm.Disk("vda", "raw", fill=fill, place=places["xfs"]), vm.Disk("vdb", "qcow2", place=places["btrfs"])]
    with vm.running(f"{vm.PREFIX}-shown", disks, start=False) as off:
        yield off


@pytest.fixture
def off(shared: vm.VM, places: dict[str, Path], clean: None) -> Iterator[vm.VM]:
    """That VM; whatever the test did, no clone is left."""
    yield shared
    assert shared.state() == "shut off"
    assert left(places) == []


def left(places: dict[str, Path]) -> list[str]:
    """The clones that there are."""
    return [path for place in places.values() for path in clones.places(place)]


@pytest.fixture
def far(clean: None, tmp_path: Path) -> Iterator[tuple[vm.VM, Path]]:
    """A VM that is shut off, and a hook that gives a URL for each of its disks."""
    hook = tmp_path / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    with vm.running(f"{vm.PREFIX}-far", [vm.Disk("vda")], start=False) as off:
        yield off, hook


def test_its_luns_are_there_again_after_a_crash_and_a_restart_of_the_host(
    off: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    libiscsi.skip_where_missing()
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    published = ("--iscsi", "--target", "tgt", "--portal", portal)
    taken = snapmount_json(*STORAGE, *published, off.name, mountpoint)
    first = views(taken, mountpoint)
    assert first["LUNs"] == first["files"] == off.read_images()
    servers.kill(taken)
    assert "nobody watches" not in snapmount("list").stdout, "its standby does"
    snapmount("recover")
    assert views(taken, mountpoint) == first

    servers.restart_host(servers.listed(taken["id"]), mountpoint)
    with filesystems.out_of_sight(*places.values()):
        said = refused("recover", code=6)
        assert f"was mounted on {places['xfs']}, is out of sight" in said
        assert servers.listed(taken["id"])["state"] == "dead"
        unwatched = "nobody watches the space that the guest's writes take"
        assert f"(snapmount recover {taken['id']}): {unwatched}" in snapmount("list").stdout
        doctor = snapmount("doctor", check=False).stdout
        assert f"{taken['id']} of {off.name} is dead" in doctor
    assert "re-attached to snapshot" in snapmount("recover").stdout
    assert views(taken, mountpoint) == first
    assert snapmount("recover").stdout == "nothing to recover\n"
    snapmount("delete", off.name)
    assert traces.found() == []


def test_one_that_cannot_be_shown_again_yet_is_watched_all_the_same(
    off: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    taken = snapmount_json(*STORAGE, "--expire", "1h", off.name, mountpoint)
    servers.restart_host(taken, mountpoint)
    mountpoint.rmdir()
    assert f"the mountpoint {mountpoint} does not exist" in refused("recover", code=3)
    mountpoint.mkdir()
    now = servers.listed(taken["id"])
    assert now["state"] == "dead"
    since_taken = datetime.fromisoformat(now["expires"]) - datetime.fromisoformat(taken["expires"])
    assert abs(since_taken) < timedelta(seconds=5)
    assert Path(f"/proc/{now['server']['standby_pid']}").exists()
    assert "nobody watches" not in snapmount("list").stdout
    with filesystems.filled(places["xfs"], leave=FLOOR_BYTES // 2):
        wait_for(lambda: left(places) == [], "it is given up")
    assert "about to find no space" in snapmount("recover").stdout
    assert traces.found() == []


def test_clones_are_not_removed_since_a_file_system_with_others_is_not_mounted(
    off: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    taken = snapmount_json(*STORAGE, off.name, mountpoint)
    first = [read_direct(mountpoint / f"{name}.raw") for name in ("vda", "vdb")]
    servers.kill(taken)
    log = Path(taken["server"]["log"])
    with filesystems.out_of_sight(places["xfs"]):
        wait_for(lambda: "the clones cannot be looked at" in log.read_text(), "the standby has looked")
        assert clones.places(places["btrfs"]) != []
    snapmount("recover")
    assert [read_direct(mountpoint / f"{name}.raw") for name in ("vda", "vdb")] == first
    snapmount("delete", off.name)


def views(taken: dict[str, Any], mountpoint: Path) -> dict[str, list[bytes]]:
    """All bytes that are shown."""
    return {
        "files": [read_direct(mountpoint / f"{name}.raw") for name in ("vda", "vdb")],
        "LUNs": libiscsi.read_luns(taken),
    }


def test_a_scratch_vm_boots_on_it_and_its_writes_do_not_come_to_the_clones(
    off: vm.VM, places: dict[str, Path], mountpoint: Path
) -> None:
    snapmount(*STORAGE, off.name, mountpoint)
    _, told = copies.boot("--wait-for", copies.UP, off.name)
    assert "in use by the scratch VM" in refused("delete", off.name, code=4)
    assert [read_direct(mountpoint / f"{name}.raw") for name in ("vda", "vdb")] == off.read_images()
    snapmount("delete", "--force", off.name)
    assert copies.gone(told)
    assert traces.found() == []


@pytest.mark.parametrize(
    "is_served", [True, False], ids=["by its server", "by the standby of a server that was killed"]
)
def test_it_ends_at_its_time(off: vm.VM, places: dict[str, Path], mountpoint: Path, is_served: bool) -> None:
    taken = snapmount_json(*STORAGE, "--expire", "4s", off.name, mountpoint)
    assert left(places) != []
    if not is_served:
        servers.kill(taken)
    wait_for(lambda: traces.found() == [], "nothing is left of it")
    assert left(places) == []


def test_a_user_s_vm_is_cloned_by_that_user(account: Account, places: dict[str, Path]) -> None:
    images, mountpoint = places["xfs"] / "user", account.home / "mountpoint"
    images.mkdir(mode=0o700)
    account.own(images)
    account.run("mkdir", mountpoint)
    disks = [vm.Disk("vda", "raw", fill=fill, place=images), vm.Disk("vdb", "qcow2", fill=fill, place=images)]
    of_user = vm.running(f"{vm.PREFIX}-user", disks, start=False, uri="qemu:///session", account=account)
    with of_user as guest:
        account.own(images)
        guest.start(paused=True)
        guest.virsh("resume", guest.name)  # it writes nothing
        take = [*account.snapmount(), "--json", *STORAGE, "--max-pause", "20", guest.name, mountpoint]
        taken = json.loads(account.run(*take).stdout)
        assert taken["pause_s"] > 0
        assert guest.state() == "running"
        shown = []
        for disk in disks:
            account.run("cp", mountpoint / f"{disk.name}.raw", account.home / disk.name)
            shown.append((account.home / disk.name).read_bytes())
        assert shown == guest.read_images()
        account.run(*account.snapmount(), "delete", guest.name)
        assert clones.places(images) == []
    shutil.rmtree(images)


def test_one_whose_disks_are_all_urls_is_shown_and_nothing_else(
    far: tuple[vm.VM, Path], helper: vm.VM, mountpoint: Path
) -> None:
    off, hook = far
    take = ("--storage", f"vda={hook}", off.name)
    said = refused("--iscsi", *take, code=4)
    assert f"{off.name}: this host can read no disk of snapshot " in said
    assert f": vda is at {URL}\n  try: no --iscsi" in said
    assert traces.found() == []

    hook.write_text(HOOK.replace('"pause_s": 0', '"pause_s": 0, "gives_url": true'))
    said = refused("--iscsi", *take, code=4)
    assert f"{off.name}: this host will be able to read no disk of the snapshot, of which there are URLs alone" in said
    assert traces.found() == []

    hook.write_text(HOOK)
    taken = snapmount_json(*take, mountpoint)
    assert (mountpoint / "vda.url").read_text() == f"{URL}\n"
    for words in (["boot", off.name], ["attach", off.name, helper.name]):
        said = refused(*words, code=4)
        assert f"can read no disk of snapshot {taken['id']}: vda is at {URL}" in said
    said = refused("attach", "--disk", "vda", off.name, helper.name, code=3)
    assert f"there is no disk 'vda'; it has none; vda is at {URL}" in said
    snapmount("delete", off.name)
    assert traces.found() == []
