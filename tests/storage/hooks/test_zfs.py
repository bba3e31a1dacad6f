"""The hook for ZFS, against a program that takes those command lines of zfs-get(8), zfs-list(8), zfs-snapshot(8) and
zfs-destroy(8), no others, and answers as OpenZFS does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapmount.errors import LeftoverError, StateError, UnreachableError
from snapmount.storage.driver import Room
from snapmount.storage.hook import HookDriver

from .host import Host, offered

DEVICES = "zvol/"  # in the test's directory

ZFS = r"""
state_path = os.path.join(here, "pool.json")
state = json.load(open(state_path))
DATASET, SNAPSHOT = r"[A-Za-z0-9_.:-]+(?:/[A-Za-z0-9_.:-]+)*", r"([^@]+)@([A-Za-z0-9_.:-]+)"
line = " ".join(sys.argv[1:])

def fail(message):
    sys.exit(message)

def check(dataset):
    if dataset not in state["datasets"]:
        fail(f"cannot open '{dataset}': dataset does not exist")

if state.get("broken"):
    fail("internal error: cannot open pool: pool I/O is currently suspended")
if match := re.fullmatch(rf"get -Hp -o value snapdev ({DATASET})", line):
    check(match[1])
    print(state["datasets"][match[1]]["snapdev"])
elif match := re.fullmatch(rf"snapshot {SNAPSHOT}", line):
    check(match[1])
    if line.split()[1] in state["snapshots"]:
        fail(f"cannot create snapshot '{line.split()[1]}': dataset already exists")
    state["snapshots"].append(line.split()[1])
elif match := re.fullmatch(rf"list -Hp -t snapshot -o name {SNAPSHOT}", line):
    name = line.split()[-1]
    if name not in state["snapshots"]:
        fail(f"cannot open '{name}': dataset does not exist")
    print(name)
elif match := re.fullmatch(rf"list -Hp -o available,used ({DATASET})", line):
    check(match[1])
    print("1000\t500")
elif match := re.fullmatch(rf"destroy {SNAPSHOT}", line):
    check(match[1])
    name = line.split()[-1]
    if name not in state["snapshots"]:
        fail("could not find any snapshots to destroy; check snapshot names.")
    if state.get("held"):
        fail(f"cannot destroy snapshot {name}: dataset is busy")
    state["snapshots"].remove(name)
else:
    print("usage: zfs command args ...", file=sys.stderr)
    sys.exit(2)
json.dump(state, open(state_path, "w"))
"""

FINDMNT = """
assert sys.argv[1:3] == ["--json", "--target"] and sys.argv[4:] == ["--output", "FSTYPE,SOURCE,TARGET"], sys.argv
print(open(os.path.join(here, "mount.json")).read())
"""


class Pool:
    """What the fake programs know."""

    def __init__(self, host: Host) -> None:
        self._path = host.directory / "bin" / "pool.json"
        self._mount = host.directory / "bin" / "mount.json"
        datasets = {"tank/vm1": {"snapdev": "visible"}, "tank/vm2": {"snapdev": "hidden"}, "tank/images": {}}
        self._path.write_text(json.dumps({"datasets": datasets, "snapshots": ["tank/vm1@daily"]}))
        host.add_program("zfs", ZFS)
        host.add_program("findmnt", FINDMNT)

    def mount(self, kind: str, source: str, target: Path) -> None:
        mounted = {"fstype": kind, "source": source, "target": str(target)}
        self._mount.write_text(json.dumps({"filesystems": [mounted]}))

    def snapshots(self) -> list[str]:
        names: list[str] = json.loads(self._path.read_text())["snapshots"]
        return names

    def change(self, **changes: object) -> None:
        self._path.write_text(json.dumps(json.loads(self._path.read_text()) | changes))


@pytest.fixture
def pool(host: Host) -> Pool:
    return Pool(host)


def device(host: Host, name: str) -> str:
    """What udev would make."""
    path = host.directory / DEVICES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def installed(host: Host) -> HookDriver:
    """The hook, which looks for devices in the test's directory."""
    return host.install("zfs", lambda text: text.replace('"/dev/zvol/"', repr(f"{host.directory}/{DEVICES}")))


async def test_a_volume_s_snapshot_is_its_device(host: Host, pool: Pool) -> None:
    driver = installed(host)
    origin = device(host, "tank/vm1")
    offer = await offered(driver, origin)
    assert (offer.pause_s, offer.guest_pays) == (0.5, "blocks that it overwrites stay allocated in tank")
    await driver.create(offer.clone)
    snapshot = f"tank/vm1@{offer.clone.kept['name']}"
    frozen = device(host, snapshot)
    clone = await driver.activate(offer.clone)
    assert clone.frozen == (frozen,)
    assert list(await driver.rooms(clone)) == [Room("tank/vm1", 1000, 1500)]
    host.calls("zfs")
    await driver.remove(clone)
    assert host.calls("zfs") == [["destroy", snapshot]]
    assert pool.snapshots() == ["tank/vm1@daily"]
    await driver.remove(clone)
    assert await driver.why_lost(clone) == f"there is no snapshot {snapshot}"


async def test_the_command_lines_are_these(host: Host, pool: Pool, tmp_path: Path) -> None:
    pool.mount("zfs", "tank/images", tmp_path)
    origin = image(tmp_path)
    driver = host.install("zfs")
    clone = (await offered(driver, origin)).clone
    assert host.calls("zfs") == []
    assert list(await driver.rooms(clone)) == [Room("tank/images", 1000, 1500)]  # before it is taken
    host.calls("zfs")
    await driver.create(clone)
    snapshot = f"tank/images@{clone.kept['name']}"
    assert host.calls("zfs") == [["snapshot", snapshot]]
    image(tmp_path / ".zfs" / "snapshot" / clone.kept["name"])
    assert await driver.why_lost(clone) is None
    assert host.calls("zfs") == [
        ["list", "-Hp", "-o", "available,used", "tank/images"],
        ["list", "-Hp", "-t", "snapshot", "-o", "name", snapshot],
    ]


def image(directory: Path) -> str:
    path = directory / "vms" / "vm1.raw"
    path.parent.mkdir(parents=True)
    path.touch()
    return str(path)


async def test_a_file_s_snapshot_is_in_the_snapshots_of_its_file_system(host: Host, pool: Pool, tmp_path: Path) -> None:
    pool.mount("zfs", "tank/images", tmp_path)
    origin = image(tmp_path)
    driver = host.install("zfs")
    clone = (await offered(driver, origin)).clone
    await driver.create(clone)
    frozen = image(tmp_path / ".zfs" / "snapshot" / clone.kept["name"])
    assert (await driver.activate(clone)).frozen == (frozen,)
    with pytest.raises(StateError, match="ZFS does not tell which blocks"):
        await driver.changed(clone, clone, origin)


async def test_what_it_cannot_take_is_told(host: Host, pool: Pool, tmp_path: Path) -> None:
    driver = installed(host)
    pool.mount("ext4", "/dev/sda1", tmp_path)
    assert await driver.why_not(image(tmp_path)) == "lies on ext4, not on ZFS"
    assert await driver.why_not(device(host, "tank/vm2")) == (
        "its snapshots have no devices (try: zfs set snapdev=visible tank/vm2)"
    )
    assert await driver.why_not("rbd:a/b") == f"is neither a file nor a device in {host.directory}/{DEVICES}"
    why = await driver.why_not(device(host, "tank/vm3"))
    assert why is not None
    assert why.endswith("plan has failed (exit status 1): cannot open 'tank/vm3': dataset does not exist")


async def test_a_pool_that_hangs_is_no_lost_snapshot(host: Host, pool: Pool, tmp_path: Path) -> None:
    pool.mount("zfs", "tank/images", tmp_path)
    driver = host.install("zfs")
    clone = (await offered(driver, image(tmp_path))).clone
    await driver.create(clone)
    pool.change(broken=True)
    with pytest.raises(UnreachableError, match="pool I/O is currently suspended"):
        await driver.why_lost(clone)
    with pytest.raises(LeftoverError, match="pool I/O is currently suspended"):
        await driver.remove(clone)
    pool.change(broken=False, held=True)
    with pytest.raises(LeftoverError, match="dataset is busy"):
        await driver.remove(clone)
    pool.change(held=False)
    await driver.remove(clone)
    assert pool.snapshots() == ["tank/vm1@daily"]
