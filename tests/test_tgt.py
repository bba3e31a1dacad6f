"""LUNs of a real tgtd: who may log in, what initiators read, that none can write, and that nothing is ever left.

Driven as the server drives it, through the helper process; the initiators are libiscsi's and QEMU's, over loopback.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from snapmount.core.initiators import Login, commands
from snapmount.core.iscsi import Credentials, Lun, Portal, Session, Target
from snapmount.errors import LeftoverError, MissingError, SnapmountError, StateError, UnreachableError, UsageError
from snapmount.publish import iscsi
from snapmount.publish.iscsi import tgt

from .rig import filesystems
from .rig.libiscsi import (
    ALSO_ME,
    ME,
    SUITES,
    TGTD_LACKS,
    TOOL_S,
    conforms,
    free_port,
    logs_in,
    output,
    run,
    skip_where_missing,
)
from .rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
MIB = 1 << 20
SIZE = 16 * MIB
STRANGER = "iqn.2024-08.internal.snapmount.tests:stranger"
CREDENTIALS = Credentials("snapshot", "s3cret,=:with+it")
MUTUAL = replace(CREDENTIALS, mutual_user="target", mutual_secret="proof,of+target")
LUNS = (
    Lun(1, "vda", SIZE, "5eda" * 8, "vm1-vda"),
    Lun(2, "vdb", SIZE, "5edb" * 8, "vm1-vdb"),
)


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """What the host must have."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the tests mount")
    skip_where_missing()


@pytest.fixture
def directory() -> Iterator[Path]:
    """The runtime directory of a snapshot; at the end nothing may be left in it, and no tgtd of it."""
    path = Path(tempfile.mkdtemp(prefix="snapmount-test-tgt-", dir="/run"))
    yield path
    left = [entry.name for entry in path.iterdir()], tgtds(path)
    for pid in left[1]:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)
    assert left == ([], [])


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[str]]:
    """Two disks on a read-only mount, as the view is one: random data and holes."""
    generator = random.Random(11)
    disks = tmp_path / "disks, read-only"  # a comma separates tgtd's parameters
    disks.mkdir()
    for lun in LUNS:
        with (disks / f"{lun.disk}.raw").open("wb") as f:
            f.truncate(lun.size_bytes)
            f.write(generator.randbytes(MIB))
            f.seek(5 * MIB)
            f.write(generator.randbytes(2 * MIB))
    subprocess.run(["mount", "--bind", disks, disks], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disks], check=True)
        yield [str(disks / f"{lun.disk}.raw") for lun in LUNS]
    finally:
        subprocess.run(["umount", disks], check=True)


@pytest.fixture
def target() -> Target:
    """A target at a free port, for everyone who has the secret."""
    return Target("iqn.2024-08.internal.snapmount:vm1.0123abcd", (Portal("127.0.0.1", free_port()),), LUNS, ())


@dataclass(frozen=True)
class Published:
    """A target with its LUNs published."""

    directory: Path
    target: Target
    files: list[str]
    credentials: Credentials

    def url(self, lun: int = 1, secret: str | None = None, portal: Portal | None = None, **options: str) -> str:
        """libiscsi's URL of a LUN, in which nothing can be quoted; an empty secret: without credentials."""
        secret = self.credentials.secret if secret is None else secret
        login = f"{self.credentials.user}%{secret}@" if secret else ""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"iscsi://{login}{portal or self.target.portals[0]}/{self.target.iqn}/{lun}" + (
            f"?{query}" if query else ""
        )

    def sessions(self) -> list[Session]:
        found: list[Session] = ask(iscsi.sessions, "tgt", self.directory, self.target)
        return found

    def withdraw(self) -> None:
        withdraw(self.directory, self.target)

    @property
    def tgtd(self) -> int:
        [pid] = tgtds(self.directory)
        return pid


@contextlib.contextmanager
def published(
    directory: Path, target: Target, files: list[str], credentials: Credentials = CREDENTIALS
) -> Iterator[Published]:
    try:
        ask(iscsi.publish, "tgt", directory, target, files, credentials)
        yield Published(directory, target, files, credentials)
    finally:
        withdraw(directory, target)


@pytest.fixture
def view(directory: Path, target: Target, files: list[str]) -> Iterator[Published]:
    with published(directory, target, files) as it:
        yield it


def ask(function: Callable[..., Any], *args: Any) -> Any:
    return trio.run(partial(function, *args))


def withdraw(directory: Path, target: Target) -> None:
    ask(iscsi.withdraw, "tgt", directory, target)


def refusal(kind: type[SnapmountError], *args: Any) -> SnapmountError:
    """The error of that kind with which publishing is refused."""
    with pytest.raises(kind) as refused:
        ask(iscsi.publish, "tgt", *args)
    return refused.value


def tgtds(directory: Path) -> list[int]:
    """The processes that have this directory in their environment as tgtd's."""
    wanted = f"TGT_IPC_SOCKET={directory}/tgtd".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def listens_at(port: int) -> bool:
    return bool(subprocess.run(["ss", "-Htln", f"sport = :{port}"], capture_output=True, text=True).stdout)


# -- what initiators see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_the_conformance_suite_passes(view: Published, suite: str) -> None:
    assert conforms(suite, view.url()) == TGTD_LACKS.get(suite, set())


def test_each_lun_has_the_bytes_of_its_disk(view: Published, tmp_path: Path) -> None:
    for lun, file in zip(LUNS, view.files, strict=True):
        output("qemu-img", "compare", "-f", "raw", "-F", "raw", file, view.url(lun.number))
    copy = tmp_path / "copy"
    output("qemu-img", "convert", "-f", "raw", "-O", "raw", view.url(2), str(copy))
    assert copy.read_bytes() == Path(view.files[1]).read_bytes()


def test_qemu_s_commands_work_as_they_are_shown(view: Published, tmp_path: Path) -> None:
    text = dict(commands(Login(view.target, view.credentials)))["QEMU"]
    secret = next(line for line in text.splitlines() if "printf" in line)
    subprocess.run(["bash", "-c", secret], cwd=tmp_path, check=True)
    assert (tmp_path / "iscsi-secret").stat().st_mode & 0o777 == 0o600
    for blockdev, file in zip(re.findall(r"-blockdev (\S+)", text), view.files, strict=True):
        original = f"driver=raw,file.filename={file.replace(',', ',,')}"
        compare = ["qemu-img", "compare", "--object", "secret,id=iscsi-secret,file=iscsi-secret", "--image-opts"]
        done = subprocess.run([*compare, original, blockdev], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_disk_is_recognised_by_serial_vendor_and_product_each_time(
    directory: Path, target: Target, files: list[str]
) -> None:
    seen = []
    for at in (target, replace(target, portals=(Portal("127.0.0.1", free_port()),))):
        with published(directory, at, files) as view:
            for lun in LUNS:
                printed = output("iscsi-inq", "-i", ME, view.url(lun.number))
                assert re.search(r"^Vendor:(.*?) *$", printed, re.MULTILINE).group(1) == lun.vendor  # type: ignore[union-attr]
                assert re.search(r"^Product:(.*?) *$", printed, re.MULTILINE).group(1) == lun.product  # type: ignore[union-attr]
                assert lun.serial in output("iscsi-inq", "-i", ME, "-e", "1", "-c", "128", view.url(lun.number))
                seen.append(identification(view.url(lun.number)))
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


def identification(url: str) -> bytes:
    """VPD page 83h, by which Linux and Windows tell disks apart."""
    return subprocess.run(["iscsi-inq", "-i", ME, "-e", "1", "-c", "131", url], capture_output=True, check=True).stdout


def test_disks_of_two_snapshots_have_no_designator_in_common(directory: Path, target: Target, files: list[str]) -> None:
    """A multipath initiator would take them for two ways to one disk."""
    other = replace(
        target,
        iqn=f"{target.iqn}0",
        portals=(Portal("127.0.0.1", free_port()),),
        luns=tuple(replace(lun, serial=f"{lun.number + 6:032x}"[::-1]) for lun in LUNS),
    )
    with published(directory, target, files) as view:
        one = set(re.findall(rb"^Designator:\[(.*?)\]$", identification(view.url()), re.MULTILINE | re.DOTALL))
    with published(directory, other, files) as view:
        two = set(re.findall(rb"^Designator:\[(.*?)\]$", identification(view.url()), re.MULTILINE | re.DOTALL))
    assert len(one) == len(two) == 3
    assert not one & two


# -- who may log in ----------------------------------------------------------------------------------------------------


def test_only_the_secret_opens_the_target(view: Published) -> None:
    assert logs_in(view.url())
    assert not logs_in(view.url(secret="s3cret,=:with+iT"))
    assert not logs_in(view.url(secret=""))


def test_only_admitted_initiators_see_the_target_and_log_in(directory: Path, target: Target, files: list[str]) -> None:
    with published(directory, replace(target, initiators=(ME, ALSO_ME)), files) as view:
        assert logs_in(view.url(), ME)
        assert logs_in(view.url(), ALSO_ME)
        assert not logs_in(view.url(), STRANGER)
        portal = f"iscsi://{target.portals[0]}"
        assert target.iqn in run("iscsi-ls", "-i", ME, portal).stdout
        assert target.iqn not in run("iscsi-ls", "-i", STRANGER, portal).stdout


def test_with_mutual_chap_the_target_proves_itself(directory: Path, target: Target, files: list[str]) -> None:
    with published(directory, target, files, MUTUAL) as view:
        assert logs_in(view.url(target_user="target", target_password="proof,of+target"))
        assert not logs_in(view.url(target_user="target", target_password="proof,of+targeT"))
        assert not logs_in(view.url(secret="", target_user="target", target_password="proof,of+target"))


def test_no_secret_can_be_seen_on_the_host(directory: Path, target: Target, files: list[str]) -> None:
    with published(directory, target, files, MUTUAL) as view:
        assert logs_in(view.url())
        assert not logs_in(view.url(secret="wrong"))
        process = Path(f"/proc/{view.tgtd}")
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        shown += (directory / "tgtd.log").read_bytes()
    assert CREDENTIALS.secret.encode() not in shown
    assert b"proof" not in shown
    assert b"--control-port" in shown


@pytest.mark.parametrize("pages", range(5))
def test_a_full_runtime_directory_is_told_and_leaves_nothing(
    directory: Path, target: Target, files: list[str], pages: int
) -> None:
    """Whatever it is that finds no room: the log, the record, or tgtd, which says nothing then."""
    full = directory / "full"
    with filesystems.small_at(full, 64), filesystems.filled(full, leave=pages * 4096):
        try:
            ask(iscsi.publish, "tgt", full, target, files, CREDENTIALS)
        except StateError as error:
            assert os.strerror(errno.ENOSPC) in error.message  # noqa: PT017  # with room enough there is none
        withdraw(full, target)
        assert not list(full.glob("tgtd*"))
        assert tgtds(full) == []


def test_tgtd_stands_on_its_own(view: Published) -> None:
    assert os.getsid(view.tgtd) == view.tgtd
    opened = [os.readlink(fd) for fd in Path(f"/proc/{view.tgtd}/fd").iterdir()]
    assert not [name for name in opened if "pipe:" in name or "/dev/pts" in name]
    assert (view.directory / "tgtd.log").stat().st_mode & 0o777 == 0o600


def test_a_lun_cannot_be_written_and_its_file_is_open_for_reading_only(view: Published) -> None:
    refused = run("qemu-io", "-f", "raw", "-c", "write 0 512", view.url())
    assert "write protected" in refused.stderr
    opened = {os.readlink(fd): fd.name for fd in Path(f"/proc/{view.tgtd}/fd").iterdir()}
    for file in view.files:
        flags = Path(f"/proc/{view.tgtd}/fdinfo/{opened[file]}").read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


def test_a_file_that_tgtd_could_write_is_not_published(directory: Path, target: Target, tmp_path: Path) -> None:
    disk = tmp_path / "vda.raw"
    disk.write_bytes(bytes(MIB))
    disk.chmod(0o400)  # root may write it all the same
    one = replace(target, luns=LUNS[:1])
    assert "read-only" in refusal(StateError, directory, one, [str(disk)], CREDENTIALS).message
    assert not listens_at(target.portals[0].port)
    withdraw(directory, one)


# -- portals -----------------------------------------------------------------------------------------------------------


def test_tgtd_listens_at_its_portals_and_nowhere_else(directory: Path, target: Target, files: list[str]) -> None:
    ipv6 = Portal("::1", free_port("::1"))
    with published(directory, replace(target, portals=(*target.portals, ipv6)), files) as view:
        for portal in view.target.portals:
            output("qemu-img", "compare", "-f", "raw", "-F", "raw", files[0], view.url(portal=portal))
        listening = run("ss", "-Htlnp").stdout.splitlines()
        assert sorted(line.split()[3] for line in listening if f"pid={view.tgtd}," in line) == sorted(
            map(str, view.target.portals)
        )


def test_a_port_in_use_is_refused_with_the_name_of_its_user(directory: Path, target: Target, files: list[str]) -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", target.portals[0].port))
        server.listen()
        error = refusal(StateError, directory, target, files, CREDENTIALS)
        assert f"(pid {os.getpid()})" in error.message
        assert str(target.portals[0]) in error.message
        [tgtd] = tgtds(directory)
        assert f"pid={tgtd}," not in run("ss", "-Htlnp").stdout  # and it does not listen elsewhere instead
        withdraw(directory, target)


def test_an_address_that_the_host_does_not_have_is_refused(directory: Path, target: Target, files: list[str]) -> None:
    for address in ("192.0.2.1", "2001:db8::1"):
        elsewhere = replace(target, portals=(*target.portals, Portal(address)))
        assert address in refusal(UsageError, directory, elsewhere, files, CREDENTIALS).message
    assert tgtds(directory) == []


# -- sessions ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def logged_in(view: Published) -> Iterator[subprocess.Popen[str]]:
    """An initiator that has read 64 KiB of the first LUN and stays."""
    process = subprocess.Popen(
        ["qemu-io", "-r", "-f", "raw", view.url()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write("read 0 65536\n")
        process.stdin.flush()
        for line in process.stdout:
            if "65536/65536" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def test_sessions_are_told_with_what_they_have_read(view: Published) -> None:
    assert view.sessions() == []
    with logged_in(view):
        [session] = view.sessions()
        assert session.address == "127.0.0.1"
        assert session.initiator.startswith("iqn.2008-11.org.linux-kvm")
        assert session.bytes_read is not None
        assert 65536 <= session.bytes_read < 2 * 65536
    wait_for(lambda: view.sessions() == [], "the initiator's session has ended")


def test_the_sessions_of_a_tgtd_that_is_gone_cannot_be_told(view: Published) -> None:
    view.withdraw()
    with pytest.raises(UnreachableError):
        view.sessions()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_withdrawing_ends_live_sessions_and_may_be_repeated(view: Published) -> None:
    with logged_in(view):
        view.withdraw()
        assert tgtds(view.directory) == []
        assert not listens_at(view.target.portals[0].port)
    view.withdraw()
    assert not logs_in(view.url())


POINTS: dict[str, Callable[[Path, Target], bool]] = {
    "at once": lambda directory, target: True,
    "tgtd runs": lambda directory, target: bool(tgtds(directory)),
    "tgtd answers": lambda directory, target: (directory / "tgtd.0").exists(),
    "the first LUN is being made": lambda directory, target: (directory / "tgtd-lun1").is_symlink(),
    "the last LUN is being made": lambda directory, target: (directory / "tgtd-lun2").is_symlink(),
    "it listens": lambda directory, target: listens_at(target.portals[0].port),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_helper_that_is_killed_leaves_nothing_that_withdrawing_does_not_find(
    directory: Path, target: Target, files: list[str], point: str
) -> None:
    request = {"do": "publish", "backend": "tgt", "directory": str(directory), "target": target.document()}
    helper = subprocess.Popen(
        [sys.executable, "-P", "-m", "snapmount.publish.iscsi.control"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert helper.stdin
    helper.stdin.write(json.dumps(request | {"files": files, "credentials": asdict(CREDENTIALS)}).encode())
    helper.stdin.close()
    wait_for(lambda: POINTS[point](directory, target), point)
    helper.kill()
    helper.wait()
    assert helper.stdout
    helper.stdout.close()
    withdraw(directory, target)
    assert tgtds(directory) == []
    assert list(directory.iterdir()) == []
    assert not listens_at(target.portals[0].port)


def test_publishing_that_is_cancelled_is_undone_by_withdrawing(
    directory: Path, target: Target, files: list[str]
) -> None:
    async def cancelled_when_tgtd_runs() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(iscsi.publish, "tgt", directory, target, files, CREDENTIALS)
            while not (directory / "tgtd.log").exists():
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        await iscsi.withdraw("tgt", directory, target)

    trio.run(cancelled_when_tgtd_runs)
    assert tgtds(directory) == []


def test_a_tgtd_of_others_is_left_alone(view: Published, tmp_path: Path) -> None:
    portal = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"TGT_IPC_SOCKET": f"{tmp_path}/tgtd"}
    other = subprocess.Popen(
        ["tgtd", "-f", "-C", "0", "--iscsi", f"portal={portal}"], env=environment, stderr=subprocess.DEVNULL
    )

    def tgtadm(*words: str) -> str:
        command = ["tgtadm", "-C", "0", "--lld", "iscsi", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        wait_for(lambda: Path(f"{tmp_path}/tgtd.0").exists(), "the other tgtd answers")
        tgtadm("--op", "new", "--mode", "target", "--tid", "1", "-T", "iqn.2001-04.com.example:other")
        before = tgtadm("--op", "show", "--mode", "target") + tgtadm("--op", "show", "--mode", "portal")
        assert view.target.iqn not in before
        view.withdraw()
        assert tgtadm("--op", "show", "--mode", "target") + tgtadm("--op", "show", "--mode", "portal") == before
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_host_without_tgtd_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tgt, "_SYSTEM_PATH", str(tmp_path))
    assert tgt.missing() == ("tgtd is not installed", "apt-get install tgt")
    target = Target("iqn.2024-08.internal.snapmount:x", (Portal("127.0.0.1"),), LUNS, ())
    with pytest.raises(MissingError):
        tgt.publish(tmp_path, target, [], CREDENTIALS)


def test_this_host_can_use_tgt() -> None:
    assert ask(iscsi.missing, "tgt") is None
    assert ask(iscsi.choose, "tgt") == "tgt"


def test_a_tgtd_that_dies_while_it_starts_is_told_with_its_last_words(
    directory: Path, target: Target, files: list[str]
) -> None:
    (directory / "tgtd.0.lock").mkdir()
    error = refusal(StateError, directory, target, files, CREDENTIALS)
    assert "lock file" in error.message
    (directory / "tgtd.0.lock").rmdir()
    withdraw(directory, target)


def test_a_path_that_is_too_long_for_a_socket_is_told(directory: Path, target: Target, files: list[str]) -> None:
    long = directory / ("d" * 100)
    long.mkdir()
    assert "too long" in refusal(StateError, long, target, files, CREDENTIALS).message
    long.rmdir()


def test_a_missing_file_is_told(directory: Path, target: Target, files: list[str]) -> None:
    error = refusal(StateError, directory, target, [files[0], "/nonexistent/vdb.raw"], CREDENTIALS)
    assert "No such file" in error.message
    withdraw(directory, target)


def test_few_descriptors_are_enough(directory: Path, target: Target, files: list[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with published(directory, target, files) as view:
            output("qemu-img", "compare", "-f", "raw", "-F", "raw", files[0], view.url())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- on the view itself ------------------------------------------------------------------------------------------------


class FuseView:
    """A sparse disk behind an NBD server, mounted as snapmount mounts it."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "image.raw"
        with self.image.open("wb") as f:
            f.truncate(SIZE)
            f.write(random.Random(5).randbytes(MIB))
            f.seek(8 * MIB)
            f.write(random.Random(6).randbytes(MIB))
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        self.file = self.mountpoint / "vda.raw"
        nbd_socket = directory / "nbd.sock"
        self.nbd = subprocess.Popen(
            ["qemu-nbd", "-r", "-t", "-f", "raw", "-x", "vda", "-e", "8", "-k", nbd_socket, self.image]
        )
        wait_for(nbd_socket.exists, "qemu-nbd listens")
        script = Path(__file__).parents[1] / "contrib/bench/mount_export.py"
        self.server = subprocess.Popen([sys.executable, script, self.mountpoint, nbd_socket, "vda"])
        wait_for(lambda: self.mountpoint.is_mount() and self.file.exists(), "the view is mounted")

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(TOOL_S)
        self.nbd.kill()
        self.nbd.wait()


@pytest.fixture
def fuse_view(tmp_path: Path) -> Iterator[FuseView]:
    if not os.access("/dev/fuse", os.R_OK):
        pytest.skip("this host lacks /dev/fuse")
    view = FuseView(tmp_path)
    yield view
    view.close()


@pytest.fixture
def single(target: Target) -> Target:
    return replace(target, luns=LUNS[:1])


def test_initiators_see_the_holes_of_the_view(directory: Path, single: Target, fuse_view: FuseView) -> None:
    with published(directory, single, [str(fuse_view.file)]) as view:
        extents = json.loads(output("qemu-img", "map", "-f", "raw", "--output=json", view.url()))
        data = [(extent["start"], extent["length"]) for extent in extents if extent["data"]]
        assert data == [(0, MIB), (8 * MIB, MIB)]
        output("qemu-img", "compare", "-f", "raw", "-F", "raw", str(fuse_view.image), view.url())


def test_a_read_that_is_not_answered_does_not_keep_tgtd(directory: Path, single: Target, fuse_view: FuseView) -> None:
    with published(directory, single, [str(fuse_view.file)]) as view:
        with stopped(fuse_view.nbd):
            reader = subprocess.Popen(["qemu-io", "-r", "-f", "raw", "-c", "read 8M 64k", view.url()])
            wait_for(lambda: "D" in thread_states(view.tgtd), "tgtd waits for the view")
            view.withdraw()
            reader.kill()
            reader.wait()
        assert tgtds(directory) == []


def test_a_hung_view_does_not_hang_withdrawing_which_says_what_is_left_each_time(
    directory: Path, single: Target, fuse_view: FuseView
) -> None:
    """tgtd hangs when it dies: to close its file asks the view."""
    with published(directory, single, [str(fuse_view.file)]) as view:
        tgtd = view.tgtd
        with stopped(fuse_view.server):
            for _ in range(2):
                with pytest.raises(LeftoverError) as left:
                    view.withdraw()
                assert f"pid {tgtd}" in left.value.message
                assert left.value.remedy == f"snapmount delete {directory.name}"
            assert thread_states(tgtd)
        view.withdraw()
        assert not listens_at(single.portals[0].port)


def test_publishing_a_hung_view_ends_at_the_deadline(
    directory: Path, single: Target, fuse_view: FuseView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iscsi, "DEADLINE_S", 1.0)
    with stopped(fuse_view.server):
        refusal(UnreachableError, directory, single, [str(fuse_view.file)], CREDENTIALS)
        assert not listens_at(single.portals[0].port)
    withdraw(directory, single)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process answers nobody."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def thread_states(pid: int) -> list[str]:
    """proc_pid_stat(5), field 3, of each thread; 'D' waits in the kernel."""
    return [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
