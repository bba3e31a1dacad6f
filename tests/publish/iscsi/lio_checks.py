"""What LIO must do, checked with real initiators.  Run by test_lio.py in a VM that nothing else uses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from snapmount.core.document import to_document
from snapmount.core.iscsi import AUTHORITY, VENDOR, Credentials, Lun, Portal, Session, Target
from snapmount.errors import StateError, UsageError
from snapmount.publish import iscsi
from snapmount.publish.iscsi import control, lio, loops

from ...rig import initiator, libiscsi
from ...rig.initiator import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0")  # what rtslib calls in pyudev

RUNTIME = Path("/run/snapmount")
ROOT = Path(__file__).parents[3]
DISKS = {"vda": 48 << 20, "vdb": 16 << 20}
PORTALS = (Portal("127.0.0.1", 3260), Portal("::1", 3260))
CREDENTIALS = Credentials("snapmount", "Ahc3ooseiy8Oozee")
MUTUAL = replace(CREDENTIALS, mutual_user="target", mutual_secret="eeDieNgai0Xu4mai")
FOREIGN = "iqn.2003-01.org.linux-iscsi.example:foreign"
FOREIGN_PORTAL = Portal("127.0.0.1", 3270)
HELPER_S = 120


# -- what is published -------------------------------------------------------------------------------------------------


@dataclass
class View:
    """Disk images and the FUSE mount that shows them."""

    origins: list[Path]
    mountpoint: Path
    server: subprocess.Popen[bytes]

    @property
    def files(self) -> list[str]:
        return [str(self.mountpoint / f"{origin.name}.raw") for origin in self.origins]


@contextlib.contextmanager
def mounted(directory: Path) -> Iterator[View]:
    images, mountpoint, nbd = directory / "images", directory / "mnt", directory / "nbd"
    images.mkdir()
    mountpoint.mkdir()
    chance = random.Random(4)
    for name, size in DISKS.items():
        with (images / name).open("wb") as image:
            image.truncate(size)
            for offset in (0, size // 2, size - 65536):
                image.seek(offset)
                image.write(chance.randbytes(65536))
    with (
        ended(subprocess.Popen(["nbdkit", "-f", "-r", "-U", nbd, "file", f"dir={images}"])),
        ended(mount_export(mountpoint, nbd)) as server,
    ):
        view = View([images / name for name in DISKS], mountpoint, server)
        wait_for(lambda: all(map(os.path.exists, view.files)), "the view is mounted")
        yield view
    subprocess.run(["umount", "-q", "-l", mountpoint])  # only where the server was killed


def mount_export(mountpoint: Path, nbd: Path) -> subprocess.Popen[bytes]:
    wait_for(nbd.exists, "nbdkit listens")
    return subprocess.Popen([sys.executable, ROOT / "contrib" / "bench" / "mount_export.py", mountpoint, nbd, *DISKS])


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(HELPER_S)


def a_target(snapshot_id: str = "0badcafe", **changes: Any) -> Target:
    luns = tuple(
        Lun(number, disk, size, hashlib.md5(f"{snapshot_id}{disk}".encode()).hexdigest(), f"vm1-{disk}")
        for number, (disk, size) in enumerate(DISKS.items(), 1)
    )
    return replace(Target(f"{AUTHORITY}:vm1.{snapshot_id}", PORTALS, luns, ()), **changes)


def directory_of(target: Target) -> Path:
    directory = RUNTIME / target.iqn.rpartition(".")[2]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


# -- control -----------------------------------------------------------------------------------------------------------


def request(do: str, target: Target, **more: Any) -> dict[str, Any]:
    return {"do": do, "backend": "lio", "directory": str(directory_of(target)), "target": to_document(target), **more}


def publish(target: Target, view: View, credentials: Credentials = CREDENTIALS) -> None:
    """Within this process, as are all but a few calls: without KVM a new one takes seconds to start."""
    control.answer(request("publish", target, files=view.files, credentials=to_document(credentials)))


def sessions(target: Target) -> list[Session]:
    return [Session(**session) for session in control.answer(request("sessions", target))]


def withdraw(target: Target) -> None:
    control.answer(request("withdraw", target))


@contextlib.contextmanager
def published(target: Target, view: View, credentials: Credentials = CREDENTIALS) -> Iterator[Target]:
    try:
        publish(target, view, credentials)
        yield target
    finally:
        withdraw(target)


# -- traces ------------------------------------------------------------------------------------------------------------


def traces() -> list[str]:
    """All that the kernel holds of ours."""
    return [
        *(str(path) for path in lio.LIO.glob("core/*/snapmount-*")),
        *(str(path) for path in lio.LIO.glob("core/iblock_*")),
        *(str(path) for path in lio.LIO.glob(f"iscsi/{AUTHORITY}*")),
        *loops.named("snapmount-"),
    ]


def tree(top: Path) -> dict[str, str]:
    """Each file below, with its content, but for counters."""
    found = {}
    for directory, directories, files in os.walk(top):
        directories[:] = [name for name in directories if "statistics" not in name]
        found[directory] = ""
        for name in files:
            path = Path(directory, name)
            with contextlib.suppress(OSError):  # write-only
                found[str(path)] = path.read_text()
    return found


def foreign_tree() -> dict[str, str]:
    return tree(lio.LIO / "iscsi" / FOREIGN) | tree(next(lio.LIO.glob("core/rd_mcp_*")))


# -- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def foreign_target() -> Iterator[None]:
    """An administrator's own target, made before any of ours; all checks leave it as it is."""
    import rtslib_fb as rtslib

    lio._prepare_kernel()
    store = rtslib.RDMCPStorageObject("foreign", 4 << 20)
    group = rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), FOREIGN), 1)
    rtslib.LUN(group, 0, store)
    rtslib.NetworkPortal(group, FOREIGN_PORTAL.address, FOREIGN_PORTAL.port)
    group.enable = True
    before = foreign_tree()
    assert len(before) > 50
    yield
    assert foreign_tree() == before


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    with mounted(tmp_path_factory.mktemp("view")) as view:
        yield view


@pytest.fixture
def own_view(tmp_path: Path) -> Iterator[View]:
    with mounted(tmp_path) as view:
        yield view


@pytest.fixture(scope="module", autouse=True)
def iscsid() -> Iterator[None]:
    with initiator.running():
        yield


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    shutil.rmtree(RUNTIME, ignore_errors=True)
    assert traces() == []


# -- reading -----------------------------------------------------------------------------------------------------------


def sysfs(device: Path, name: str) -> str:
    return Path("/sys/block", device.name, name).read_text().strip()


def test_the_backend_can_be_used_here() -> None:
    assert lio.missing() is None


def test_the_kernel_s_initiator_reads_the_origins_bytes_over_ipv4_and_ipv6(view: View) -> None:
    with published(a_target(), view) as target:
        for portal in PORTALS:
            with initiator.session(target, portal, CREDENTIALS) as devices:
                for device, origin in zip(devices, view.origins, strict=True):
                    assert hashlib.sha256(device.read_bytes()).digest() == hashlib.sha256(origin.read_bytes()).digest()


def test_disks_are_recognised_by_serial_vendor_and_model(view: View) -> None:
    with published(a_target(), view) as target, initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
        for device, lun in zip(devices, target.luns, strict=True):
            assert sysfs(device, "device/vendor") == VENDOR
            assert sysfs(device, "device/model") == lun.product
            serial = Path("/sys/block", device.name, "device/vpd_pg80").read_bytes()[4:]
            assert serial.decode().strip("\0 ") == lun.serial
            assert int(sysfs(device, "size")) * 512 == lun.size_bytes
            assert lun.serial[:25] in sysfs(device, "device/wwid")


def test_disks_have_the_logical_blocks_of_the_guest_s(view: View) -> None:
    first, *others = a_target().luns
    luns = (replace(first, logical_block_size_bytes=4096), *others)
    with published(a_target(luns=luns), view) as target, initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
        for device, lun, origin in zip(devices, target.luns, view.origins, strict=True):
            assert sysfs(device, "queue/logical_block_size") == str(lun.logical_block_size_bytes)
            assert int(sysfs(device, "size")) * 512 == lun.size_bytes
            assert hashlib.sha256(device.read_bytes()).digest() == hashlib.sha256(origin.read_bytes()).digest()


def test_disks_are_read_only_and_writes_that_are_forced_fail(view: View) -> None:
    before = [origin.read_bytes() for origin in view.origins]
    with published(a_target(), view) as target:
        for loop in loops.named("snapmount-"):
            assert sysfs(Path(loop), "ro") == "1"
            assert sysfs(Path(loop), "loop/dio") == "1"
        with initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
            for device in devices:
                # the kernel asks for it once the disk is there
                wait_for(partial(is_read_only, device), "the disk is known to be read-only")
                subprocess.run(["blockdev", "--setrw", device], capture_output=True)
                with pytest.raises(OSError):  # noqa: PT011
                    overwrite(device)
    assert [origin.read_bytes() for origin in view.origins] == before


def is_read_only(device: Path) -> bool:
    return sysfs(device, "ro") == "1"


def overwrite(device: Path) -> None:
    with device.open("r+b", buffering=0) as disk:
        disk.write(bytes(4096))
        os.fsync(disk.fileno())


def test_the_conformance_suites_pass(view: View) -> None:
    with published(a_target(), view) as target:
        for suite in libiscsi.SUITES:
            assert libiscsi.conforms(suite, url(target)) <= libiscsi.LIO_MAY_LACK


def url(target: Target, lun: int = 1) -> str:
    login = f"{CREDENTIALS.user}%{CREDENTIALS.secret}"
    return f"iscsi://{login}@{target.portals[0]}/{target.iqn}/{lun}"


def test_the_server_s_calls_go_through_a_process_of_their_own(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    for deadline in ("DEADLINE_S", "ANSWER_S"):  # without KVM a new process takes seconds to start
        monkeypatch.setattr(iscsi, deadline, HELPER_S)
    target = a_target(initiators=(initiator.NAME,))
    directory = directory_of(target)

    async def calls() -> None:
        assert await iscsi.missing("lio") is None
        await iscsi.publish("lio", directory, target, view.files, CREDENTIALS)
        with initiator.session(target, PORTALS[1], CREDENTIALS):
            (session,) = await iscsi.sessions("lio", directory, target)
            assert (session.initiator, session.address) == (initiator.NAME, PORTALS[1].address)
            await iscsi.withdraw("lio", directory, target)
            assert traces() == []

    try:
        trio.run(calls)
    finally:
        withdraw(target)


# -- who may log in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initiators", [(), (initiator.NAME,)], ids=["anyone", "by-name"])
def test_only_who_knows_the_secret_may_log_in(view: View, initiators: tuple[str, ...]) -> None:
    with published(a_target(initiators=initiators), view) as target:
        for wrong in (None, replace(CREDENTIALS, secret="x" * 16), replace(CREDENTIALS, user="other"), MUTUAL):
            done = initiator.log_in(target, PORTALS[0], wrong)
            assert done.returncode != 0, wrong
        assert sessions(target) == []
        with initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
            assert len(devices) == 2


def test_only_initiators_that_are_named_may_log_in(view: View) -> None:
    with published(a_target(initiators=("iqn.2001-04.com.example:friend",)), view) as target:
        assert initiator.log_in(target, PORTALS[0], CREDENTIALS).returncode != 0
        assert target.iqn not in initiator.iscsiadm("-m", "discovery", "-t", "st", "-p", str(PORTALS[0])).stdout
        for name, may in (("friend", True), ("stranger", False)):
            assert libiscsi.logs_in(url(target), f"iqn.2001-04.com.example:{name}") is may


@pytest.mark.parametrize("initiators", [(), (initiator.NAME,)], ids=["anyone", "by-name"])
def test_the_target_proves_itself_where_that_is_asked_for(view: View, initiators: tuple[str, ...]) -> None:
    with published(a_target(initiators=initiators), view, MUTUAL) as target:
        impostor = replace(MUTUAL, mutual_secret="y" * 16)
        assert initiator.log_in(target, PORTALS[0], impostor).returncode != 0
        with initiator.session(target, PORTALS[0], MUTUAL) as devices:
            assert initiator.read(devices[0], 65536) == view.origins[0].read_bytes()[:65536]


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_sessions_of_named_initiators_are_told_with_address_and_bytes(view: View) -> None:
    with published(a_target(initiators=(initiator.NAME, "iqn.2001-04.com.example:other")), view) as target:
        assert sessions(target) == []
        for portal in PORTALS:
            with initiator.session(target, portal, CREDENTIALS) as devices:
                initiator.read(devices[0], 4 << 20)
                (session,) = sessions(target)
                assert (session.initiator, session.address) == (initiator.NAME, portal.address)
                assert session.bytes_read is not None
                assert session.bytes_read > 4 << 20
            wait_for(lambda: sessions(target) == [], "the session is over")


def test_sessions_of_others_are_told_by_name(view: View) -> None:
    with published(a_target(), view) as target:
        assert sessions(target) == []
        with initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
            initiator.read(devices[0], 4 << 20)
            (session,) = sessions(target)
            assert session.initiator == initiator.NAME
            assert session.bytes_read is not None
            assert session.bytes_read >= 4 << 20
        wait_for(lambda: sessions(target) == [], "the session is over")


# -- withdrawing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initiators", [(), (initiator.NAME,)], ids=["anyone", "by-name"])
def test_a_live_session_does_not_keep_it_from_being_withdrawn(view: View, initiators: tuple[str, ...]) -> None:
    target = a_target(initiators=initiators)
    with published(target, view), initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
        with subprocess.Popen(["dd", f"if={devices[0]}", "of=/dev/null", "bs=4k", "iflag=direct"], stderr=-3) as reader:
            withdraw(target)
            assert traces() == []
            reader.wait(HELPER_S)
            assert not is_open(PORTALS[0])
        withdraw(target)


def is_open(portal: Portal) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((portal.address, portal.port)):
        return True
    return False


def test_a_publication_that_is_killed_before_any_of_its_steps_can_be_withdrawn(view: View) -> None:
    target = a_target(initiators=(initiator.NAME,))
    lio.missing()
    step = 0
    while killed_before(step, lambda: lio.publish(directory_of(target), target, view.files, MUTUAL)):
        lio.withdraw(directory_of(target), target)
        assert traces() == [], step
        step += 1
    assert step > 40
    lio.withdraw(directory_of(target), target)


def killed_before(step: int, function: Callable[[], None]) -> bool:
    """Run it in a child, which is killed before its step-th call that changes something in the kernel."""
    pid = os.fork()
    if pid == 0:
        left = step

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in ("os.mkdir", "os.symlink", "fcntl.ioctl") or (event == "open" and "w" in str(arguments[1])):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        warnings.resetwarnings()  # rtslib causes some
        sys.addaudithook(count)
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def test_it_can_be_withdrawn_when_the_server_was_killed(own_view: View) -> None:
    target = a_target()
    with published(target, own_view), initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
        own_view.server.kill()
        own_view.server.wait()
        with pytest.raises(OSError):  # noqa: PT011
            initiator.read(devices[0], 4096)
        subprocess.run(["umount", "-l", own_view.mountpoint], check=True)
        withdraw(target)
        assert traces() == []


def test_while_the_server_hangs_the_port_is_closed_at_once_and_the_rest_follows(view: View) -> None:
    target = a_target()
    with published(target, view), initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
        view.server.send_signal(signal.SIGSTOP)
        try:
            reading = subprocess.Popen(["dd", f"if={devices[1]}", "of=/dev/null", "bs=4k", "iflag=direct"], stderr=-3)
            wait_for(lambda: sysfs(devices[1], "inflight").split() != ["0", "0"], "a read is under way")
            withdrawing = subprocess.Popen(
                [sys.executable, "-P", "-m", "snapmount.publish.iscsi.control"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert withdrawing.stdin
            withdrawing.stdin.write(json.dumps(request("withdraw", target)).encode())
            withdrawing.stdin.flush()
            withdrawing.stdin.close()
            withdrawing.stdin = None  # for communicate()
            wait_for(lambda: not is_open(PORTALS[0]), "nobody can log in")
            assert withdrawing.poll() is None
        finally:
            view.server.send_signal(signal.SIGCONT)
        answer, _ = withdrawing.communicate(timeout=HELPER_S)
        assert json.loads(answer) == {"ok": None}
        assert traces() == []
        reading.wait(HELPER_S)


# -- others ------------------------------------------------------------------------------------------------------------


def refused(target: Target, view: View) -> None:
    try:
        publish(target, view)
    finally:
        withdraw(target)


def test_a_port_that_another_target_of_the_kernel_uses_is_refused_with_its_name(view: View) -> None:
    with pytest.raises(StateError, match=f"{FOREIGN_PORTAL} is in use by .* {FOREIGN}"):
        refused(a_target(portals=(FOREIGN_PORTAL,)), view)


def test_a_port_that_a_process_uses_is_refused_with_its_pid(view: View) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = a_target(portals=(Portal("127.0.0.1", taken.getsockname()[1]),))
        with pytest.raises(StateError, match=f"is in use by .*pid {os.getpid()}"):
            refused(target, view)


def test_an_address_that_this_host_does_not_have_is_refused(view: View) -> None:
    with pytest.raises(UsageError, match="does not have the address"):
        refused(a_target(portals=(Portal("192.0.2.7"),)), view)


def test_snapshots_share_a_portal_and_end_each_for_itself(view: View) -> None:
    with published(a_target(), view) as lasting, initiator.session(lasting, PORTALS[0], CREDENTIALS) as devices:
        free = control.answer({"do": "free_ports", "backend": "lio", "requests": [{"address": PORTALS[0].address}]})
        assert PORTALS[0].port in free
        assert FOREIGN_PORTAL.port not in free
        with published(a_target("12345678"), view) as other, initiator.session(other, PORTALS[0], CREDENTIALS):
            assert len(sessions(other)) == 1
        assert initiator.read(devices[0], 65536) == view.origins[0].read_bytes()[:65536]
        assert len(sessions(lasting)) == 1


def test_publishing_twice_is_refused_and_leaves_the_first_alone(view: View) -> None:
    with published(a_target(), view) as target, initiator.session(target, PORTALS[0], CREDENTIALS) as devices:
        with pytest.raises(StateError, match="exists"):
            publish(target, view)
        assert initiator.read(devices[0], 65536) == view.origins[0].read_bytes()[:65536]
