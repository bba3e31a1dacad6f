"""The hook for NetApp ONTAP, against a server that speaks the documented REST calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from snapmount.core.names import is_snapshot_id
from snapmount.errors import LeftoverError, StateError, UnreachableError
from snapmount.storage.driver import Room, is_url
from snapmount.storage.hook import HookDriver

from . import filer as filers
from .filer import Filer
from .host import SNAPSHOT, Host, offered, taken

SERIAL = "805-h{G1*6|?"  # what a query would take for operators is in it
DEVICE = f"/dev/disk/by-id/wwn-0x600a0980{SERIAL.encode().hex()}"

FINDMNT = """
print(json.dumps({"filesystems": [json.load(open(os.path.join(here, "mount.json")))]}))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Filer, Path]]:
    with filers.serving(tmp_path_factory.mktemp("filer")) as served:
        yield served


@pytest.fixture
def filer(served: tuple[Filer, Path]) -> Filer:
    """One that has nothing on it."""
    filer, _ = served
    filer.__init__(port=filer.port)  # type: ignore[misc]
    return filer


@pytest.fixture
def driver(host: Host, filer: Filer, served: tuple[Filer, Path]) -> HookDriver:
    settle(host, filer, served[1])
    host.add_program("findmnt", FINDMNT)
    mount(host, "nfs4", "filer:/images")
    return host.install("ontap")


def settle(host: Host, filer: Filer, certificate: Path | None, /, **more: object) -> Path:
    """Write the hook's settings."""
    told: dict[str, Any] = {"host": f"127.0.0.1:{filer.port}", "user": filers.USER, "password": filers.PASSWORD}
    told |= ({"cafile": str(certificate)} if certificate else {}) | more
    path = host.directory / "ontap.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    path.chmod(0o600)
    return path


def mount(host: Host, kind: str, source: str) -> None:
    (host.directory / "bin" / "mount.json").write_text(json.dumps({"fstype": kind, "source": source, "target": "/"}))


def image(tmp_path: Path) -> str:
    path = tmp_path / "vm1.raw"
    path.touch()
    return str(path)


async def test_a_lun_s_snapshot_is_the_url_of_its_volume_s(driver: HookDriver, filer: Filer) -> None:
    for name in ("a", "b", "vms"):  # more than a page
        volume = filer.add_volume(name)
        filer.add_lun(volume, SERIAL if name == "vms" else f"{name:12}")
    offer = await offered(driver, DEVICE)
    assert offer.gives_url
    assert (offer.pause_s, offer.guest_pays) == (
        0.8,
        "blocks that it overwrites stay allocated in the volume vs0:vms",
    )
    assert list(await driver.rooms(offer.clone)) == [Room("the volume vs0:vms", 1000, 4000)]  # before it is taken
    filer.calls.clear()
    await driver.create(offer.clone)
    assert len(filer.calls) == 1
    name = offer.clone.kept["name"]
    assert set(filer.snapshots[volume]) == {"hourly.0", name}

    clone = await driver.activate(offer.clone)
    (frozen,) = clone.frozen
    uuid = filer.snapshots[volume][name]
    assert frozen == f"https://127.0.0.1:{filer.port}/api/storage/volumes/{volume}/snapshots/{uuid}"
    assert is_url(frozen)
    assert is_snapshot_id(name.split("-")[1])
    assert list(await driver.rooms(clone)) == [Room("the volume vs0:vms", 1000, 4000)]
    with pytest.raises(StateError, match="this hook does not ask the filer for it"):
        await driver.changed(clone, clone, DEVICE)

    await driver.remove(clone)
    await driver.remove(clone)
    assert set(filer.snapshots[volume]) == {"hourly.0"}
    assert await driver.why_lost(clone) == f"the volume vs0:vms has no snapshot {name}"


async def test_a_call_that_goes_on_is_waited_for_by_its_job(driver: HookDriver, filer: Filer) -> None:
    filer.asynchronous = True
    volume = filer.add_volume("vms")
    filer.add_lun(volume, SERIAL)
    clone, name = await taken(driver, DEVICE)
    (job,) = filer.jobs
    assert filer.calls.count(f"GET /api/cluster/jobs/{job}?fields=state%2Cmessage%2Ccode") == 3
    await driver.remove(clone)
    assert len(filer.jobs) == 2
    assert name not in filer.snapshots[volume]


async def test_a_job_that_fails_is_told_in_the_filer_s_words(driver: HookDriver, filer: Filer) -> None:
    filer.asynchronous = True
    filer.add_lun(filer.add_volume("vms"), SERIAL)
    clone = (await offered(driver, DEVICE)).clone
    filer.failing = {"state": "failure", "message": "No space left on device.", "code": 1638420}
    with pytest.raises(StateError, match=r"POST /api/storage/volumes/.*/snapshots: No space left on device\."):
        await driver.create(clone)
    await driver.remove(clone)
    filer.failing = None
    await driver.create(clone)
    filer.failing = {"state": "failure", "message": "Snapshot is busy.", "code": 1638555}
    with pytest.raises(LeftoverError, match=r"Snapshot is busy\."):
        await driver.remove(clone)
    filer.failing = {"state": "failure", "message": "entry doesn't exist", "code": 4}  # somebody was faster
    await driver.remove(clone)


async def test_a_job_that_does_not_end_is_told_before_the_deadline(
    host: Host, driver: HookDriver, filer: Filer
) -> None:
    filer.asynchronous = True
    filer.add_lun(filer.add_volume("vms"), SERIAL)
    clone = (await offered(driver, DEVICE)).clone
    filer.failing = {"state": "running"}
    question = {"deadline_s": 3.0, "origin": DEVICE, "snapshot": SNAPSHOT, **clone.kept}
    done = await trio.run_process(
        [host.directory / "ontap", "take"],
        stdin=json.dumps(question).encode(),
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )
    assert done.returncode == 1
    assert done.stderr.decode().rstrip().endswith(f"the job {next(iter(filer.jobs))} is running")


async def test_a_volume_that_has_gone_is_a_lost_snapshot(driver: HookDriver, filer: Filer) -> None:
    volume = filer.add_volume("vms")
    filer.add_lun(volume, SERIAL)
    clone, _ = await taken(driver, DEVICE)
    filer.volumes.clear()
    del filer.snapshots[volume]
    assert await driver.why_lost(clone) == "there is no volume vs0:vms any more"
    await driver.remove(clone)


async def test_a_file_is_in_the_volume_that_is_mounted_nearest(
    host: Host, driver: HookDriver, filer: Filer, tmp_path: Path
) -> None:
    for name, path in (("root", "/"), ("all", "/images"), ("fast", "/images/fast"), ("other", None)):
        filer.add_volume(name, path=path)
    origin = image(tmp_path)
    assert (await offered(driver, origin)).clone.kept["state"]["named"] == "vs0:all"
    mount(host, "nfs", "[2001:db8::1]:/images/fast/vms")
    assert (await offered(driver, origin)).clone.kept["state"]["named"] == "vs0:fast"
    mount(host, "nfs", "filer:/")
    assert (await offered(driver, origin)).clone.kept["state"]["named"] == "vs0:root"


async def test_an_export_of_two_svms_needs_one_to_be_named(
    host: Host, driver: HookDriver, filer: Filer, served: tuple[Filer, Path], tmp_path: Path
) -> None:
    filer.add_volume("x", "vs0", "/images")
    filer.add_volume("y", "vs1", "/images")
    origin, settings = image(tmp_path), host.directory / "ontap.toml"
    assert await driver.why_not(origin) == (
        f"127.0.0.1:{filer.port} has more than one volume exported as /images: vs0:x and vs1:y (set svm in {settings})"
    )
    settle(host, filer, served[1], svm="vs1", pause_s=0.25)
    offer = await offered(driver, origin)
    assert (offer.clone.kept["state"]["named"], offer.pause_s) == ("vs1:y", 0.25)


async def test_what_it_cannot_take_is_told(host: Host, driver: HookDriver, filer: Filer, tmp_path: Path) -> None:
    name = f"127.0.0.1:{filer.port}"
    assert await driver.why_not(DEVICE) == f"{name} has no LUN with that serial number"
    assert await driver.why_not(image(tmp_path)) == f"{name} has no volume exported as /images"
    mount(host, "xfs", "/dev/sda1")
    assert await driver.why_not(image(tmp_path)) == "lies on xfs, not on an NFS export of a filer"
    for other in ("rbd:a/b", "/dev/disk/by-id/wwn-0x60014050" + "0" * 24):
        assert await driver.why_not(other) == "is neither a LUN of an ONTAP filer nor a file"


# -- certificate and password ------------------------------------------------------------------------------------------


async def test_a_certificate_that_nobody_vouches_for_gets_no_password(
    host: Host, driver: HookDriver, filer: Filer
) -> None:
    settle(host, filer, None)
    why = await driver.why_not(DEVICE)
    assert why is not None
    assert "CERTIFICATE_VERIFY_FAILED" in why
    assert filer.logins == set()


async def test_a_certificate_of_another_name_is_refused(
    host: Host, driver: HookDriver, filer: Filer, served: tuple[Filer, Path]
) -> None:
    settle(host, filer, served[1], host=f"localhost:{filer.port}")
    why = await driver.why_not(DEVICE)
    assert why is not None
    assert "Hostname mismatch" in why
    assert filer.logins == set()


async def test_a_wrong_password_is_told_and_not_shown(
    host: Host, driver: HookDriver, filer: Filer, served: tuple[Filer, Path]
) -> None:
    settle(host, filer, served[1], password="wr0ng")
    why = await driver.why_not(DEVICE)
    assert why is not None
    assert why.endswith("GET /api/storage/luns: User is not authorized. (6691623)")
    assert "wr0ng" not in why


async def test_a_file_with_a_password_that_others_may_read_is_not_used(
    host: Host, driver: HookDriver, filer: Filer
) -> None:
    path = host.directory / "ontap.toml"
    await trio.Path(path).chmod(0o640)
    why = await driver.why_not(DEVICE)
    assert why is not None
    assert why.endswith(f"{path} holds a password, and others may read it (try: chmod 600 {path})")
    assert filer.calls == []


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"host": 1}, "host is not known, or of another type than it must be"),
        ({"hosts": "a"}, "hosts is not known, or of another type than it must be"),
        ({"cafile": "/nowhere.pem"}, "/nowhere.pem cannot be read: No such file or directory"),
    ],
)
async def test_settings_with_anything_else_are_an_error(
    host: Host, driver: HookDriver, filer: Filer, more: dict[str, object], complaint: str
) -> None:
    settle(host, filer, None, **more)
    why = await driver.why_not(DEVICE)
    assert why is not None
    assert why.endswith(complaint)


async def test_a_filer_that_is_down_is_no_lost_snapshot(
    host: Host, driver: HookDriver, filer: Filer, served: tuple[Filer, Path]
) -> None:
    filer.add_lun(filer.add_volume("vms"), SERIAL)
    clone, _ = await taken(driver, DEVICE)
    settle(host, filer, served[1], host="127.0.0.1:1")
    with pytest.raises(UnreachableError, match=r"https://127\.0\.0\.1:1 cannot be reached: .*Connection refused"):
        await driver.why_lost(clone)
    settle(host, filer, served[1])
    await driver.remove(clone)
