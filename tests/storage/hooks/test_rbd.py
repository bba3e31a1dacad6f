"""The hook for Ceph RBD, against a program that takes those command lines of rbd(8), no others, and answers as it does.

Its exit status is an errno(3), and --format json prints JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.core.origin import Host as Monitor
from snapmount.core.origin import NetworkOrigin
from snapmount.errors import LeftoverError, UnreachableError

from .host import Host, offered, taken

RBD = r"""
state_path = os.path.join(here, "cluster.json")
state = json.load(open(state_path))
options, words = [], sys.argv[1:]
while words and words[0] in ("--id", "--conf", "-m"):
    options += words[:2]
    words = words[2:]
line = " ".join(words)
IMAGE = r"([^-@/ ][^@/ ]*(?:/[^@/ ]+){1,2})"
SNAPSHOT = rf"({IMAGE}@([^@/ ]+))"

def fail(number, message):
    print(f"rbd: {message}: ({number}) {os.strerror(number)}", file=sys.stderr)
    sys.exit(number)

def check(image):
    if image not in state["images"]:
        fail(2, f"error opening image {image.rpartition('/')[2]}")

if state.get("down"):
    fail(110, "couldn't connect to the cluster!")
if match := re.fullmatch(rf"info --format json {IMAGE}", line):
    check(match[1])
    print(json.dumps({"name": match[1].rpartition("/")[2], "size": 1 << 30, "order": 22}))
elif match := re.fullmatch(rf"snap create {SNAPSHOT}", line):
    check(match[2])
    state["images"][match[2]].append(match[3])
    print("\rCreating snap: 100% complete...done.", file=sys.stderr)
elif match := re.fullmatch(rf"snap ls --format json {IMAGE}", line):
    check(match[1])
    names = state["images"][match[1]]
    print(json.dumps([{"id": i, "name": name, "size": 1 << 30, "protected": "false"} for i, name in enumerate(names)]))
elif match := re.fullmatch(rf"snap rm {SNAPSHOT}", line):
    check(match[2])
    if match[3] not in state["images"][match[2]]:
        fail(2, f"failed to remove snapshot {match[3]}")
    state["images"][match[2]].remove(match[3])
elif line == "device list --format json":
    print(json.dumps(state["devices"]))
elif match := re.fullmatch(rf"device map --read-only {SNAPSHOT}", line):
    pool, *namespace, name = match[2].split("/")
    device = f"/dev/rbd{len(state['devices'])}"
    state["devices"].append({"id": str(len(state["devices"])), "pool": pool, "namespace": "/".join(namespace),
                             "name": name, "snap": match[3], "device": device})
    print(device)
elif match := re.fullmatch(r"device unmap (/dev/rbd[0-9]+)", line):
    if state.get("busy"):
        fail(16, "sysfs write failed\nrbd: unmap failed")
    state["devices"] = [each for each in state["devices"] if each["device"] != match[1]]
elif match := re.fullmatch(rf"diff --from-snap ([^@/ ]+) --format json {SNAPSHOT}", line):
    print(json.dumps(state["diff"]))
else:
    print(f"error: unknown option or argument: {line}", file=sys.stderr)
    sys.exit(1)
json.dump(state, open(state_path, "w"))
"""

ORIGIN = "rbd:vms/vm1"
ITSELF = {"id": "0", "pool": "vms", "namespace": "", "name": "vm1", "snap": "-", "device": "/dev/rbd0"}


class Cluster:
    """What the fake program knows."""

    def __init__(self, host: Host) -> None:
        self._path = host.directory / "bin" / "cluster.json"
        images: dict[str, list[str]] = {"vms/vm1": ["daily"], "vms/a/vm2": []}
        self._path.write_text(json.dumps({"images": images, "devices": [ITSELF]}))
        host.add_program("rbd", RBD)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._path.read_text())
        return state

    def change(self, **changes: object) -> None:
        self._path.write_text(json.dumps(self.state() | changes))


@pytest.fixture
def cluster(host: Host) -> Cluster:
    return Cluster(host)


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def test_a_snapshot_is_mapped_to_be_read_and_unmapped_to_be_deleted(host: Host, cluster: Cluster) -> None:
    driver = host.install("rbd")
    offer = await offered(driver, ORIGIN)
    assert host.calls("rbd") == [["info", "--format", "json", "vms/vm1"]]
    await driver.create(offer.clone)
    name = offer.clone.kept["name"]
    snapshot = f"vms/vm1@{name}"
    assert host.calls("rbd") == [["snap", "create", snapshot]]
    clone = await driver.activate(offer.clone)
    assert clone.frozen == ("/dev/rbd1",)
    assert host.calls("rbd") == [
        ["snap", "ls", "--format", "json", "vms/vm1"],
        ["device", "list", "--format", "json"],
        ["device", "map", "--read-only", snapshot],
    ]
    assert (await driver.activate(clone)).frozen == ("/dev/rbd1",)
    assert list(await driver.rooms(clone)) == []
    host.calls("rbd")
    await driver.remove(clone)
    assert host.calls("rbd") == [
        ["snap", "ls", "--format", "json", "vms/vm1"],
        ["device", "list", "--format", "json"],
        ["device", "unmap", "/dev/rbd1"],
        ["snap", "rm", snapshot],
    ]
    assert cluster.state()["images"]["vms/vm1"] == ["daily"]
    assert cluster.state()["devices"] == [ITSELF]
    await driver.remove(clone)
    assert await driver.why_lost(clone) == f"there is no snapshot {snapshot}"


async def test_an_image_that_has_gone_is_a_lost_snapshot(host: Host, cluster: Cluster) -> None:
    driver = host.install("rbd")
    clone, _ = await taken(driver, ORIGIN)
    cluster.change(images={})
    assert await driver.why_lost(clone) is not None
    await driver.remove(clone)


async def test_the_cluster_and_the_user_are_those_that_are_told(host: Host, cluster: Cluster) -> None:
    driver = host.install("rbd")
    write(host.directory / "rbd.toml", 'id = "libvirt"\n')
    monitors = (Monitor("192.0.2.1", "6789"), Monitor("2001:db8::1"))
    origin = str(NetworkOrigin("rbd", "vms/a/vm2", monitors, config="/etc/ceph/b.conf"))
    await taken(driver, origin)
    options = ["--id", "libvirt", "--conf", "/etc/ceph/b.conf", "-m", "192.0.2.1:6789,[2001:db8::1]"]
    calls = host.calls("rbd")
    assert [call[:6] for call in calls] == [options] * len(calls)
    assert cluster.state()["devices"][1]["namespace"] == "a"


async def test_a_device_of_the_kernel_is_known_by_its_link(host: Host, cluster: Cluster) -> None:
    driver = host.install("rbd")
    assert await driver.why_not("/dev/rbd/vms/vm1") is None
    assert await driver.why_not("/dev/rbd/vms/vm3") == "there is no image vms/vm3"
    assert await driver.why_not("/srv/vm1.raw") == "is neither rbd:POOL/IMAGE nor a device in /dev/rbd/"
    for odd in ("rbd:vms", "rbd:--help/vm1", "rbd:vms/vm1@daily"):
        assert await driver.why_not(odd) == "is neither rbd:POOL/IMAGE nor a device in /dev/rbd/"


async def test_a_snapshot_may_be_told_as_a_url(host: Host, cluster: Cluster) -> None:
    driver = host.install("rbd")
    write(host.directory / "rbd.toml", "map = false\n")
    clone, name = await taken(driver, ORIGIN)
    assert clone.frozen == (f"rbd:vms/vm1@{name}",)
    await driver.remove(clone)
    assert cluster.state()["images"]["vms/vm1"] == ["daily"]


async def test_what_has_changed_is_what_the_cluster_tells(host: Host, cluster: Cluster) -> None:
    told = [
        {"offset": 4194304, "length": 4096, "exists": "false"},
        {"offset": 0, "length": 65536, "exists": "true"},
    ]
    cluster.change(diff=told)
    driver = host.install("rbd")
    clone, name = await taken(driver, ORIGIN)
    host.calls("rbd")
    extents = await driver.changed(clone, clone, ORIGIN)
    assert list(extents) == [Extent(0, 65536, 0), Extent(4194304, 4096, HOLE | ZERO)]
    assert host.calls("rbd") == [["diff", "--from-snap", name, "--format", "json", f"vms/vm1@{name}"]]


async def test_a_cluster_that_is_down_is_no_lost_snapshot(host: Host, cluster: Cluster) -> None:
    driver = host.install("rbd")
    clone, _ = await taken(driver, ORIGIN)
    cluster.change(down=True)
    with pytest.raises(UnreachableError, match="couldn't connect to the cluster!"):
        await driver.why_lost(clone)
    with pytest.raises(LeftoverError, match="couldn't connect to the cluster!"):
        await driver.remove(clone)
    cluster.change(down=False, busy=True)
    with pytest.raises(LeftoverError, match="unmap failed"):
        await driver.remove(clone)
    cluster.change(busy=False)
    await driver.remove(clone)
    assert cluster.state()["devices"] == [ITSELF]


@pytest.mark.parametrize("text", ["id = 1", "user = 'a'", "map = 'no'", "id"])
async def test_a_file_of_settings_with_anything_else_is_an_error(host: Host, cluster: Cluster, text: str) -> None:
    driver = host.install("rbd")
    write(host.directory / "rbd.toml", text)
    why = await driver.why_not(ORIGIN)
    assert why is not None
    assert f"{host.directory}/rbd.toml" in why
