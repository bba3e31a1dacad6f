"""A supervised snapshot: what the service manager is told, where the log goes, and that the unit is well-formed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.host import notify, priorities

from ..rig import power, servers, service_manager, traces, vm
from ..rig.command import SNAPMOUNT, read_direct, snapmount, snapmount_json, state_of
from ..rig.libvirtd import wait_for

UNIT = Path(__file__).parents[2] / "contrib" / "systemd" / "snapmount@.service"
RECOVER = UNIT.with_name("snapmount-recover.service")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


@contextlib.contextmanager
def served(guest: vm.VM, mountpoint: Path, tmp_path: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A snapshot in the foreground, as a unit starts it."""
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify")} | environment
    with (tmp_path / "stderr").open("ab") as stderr:
        if "JOURNAL_STREAM" in environment:
            status = os.fstat(stderr.fileno())
            told["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        command = [SNAPMOUNT, "take", "--foreground", "--", guest.name, str(mountpoint)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | told
        ) as process:
            try:
                yield process
            finally:
                process.terminate()


@pytest.mark.vm
def test_the_service_manager_is_told_and_a_restart_re_attaches(
    writer: vm.VM, mountpoint: Path, tmp_path: Path, manager: socket.socket
) -> None:
    with served(writer, mountpoint, tmp_path) as process:
        ready, *status = manager.recv(4096).decode().split("\n")
        (shown,) = snapmount_json("list")
        assert (ready, shown["server"]["pid"]) == ("READY=1", process.pid)
        assert (shown["server"]["standby_pid"], power.children(process.pid)) == (None, [])
        assert status == [f"STATUS=snapshot {shown['id']}, mounted at {mountpoint}"]
        log = Path(shown["server"]["log"])
        assert "this is the snapshot's moment" in log.read_text()
        assert log.stat().st_mode & 0o777 == 0o600
        process.kill()
    assert (tmp_path / "stderr").read_text() == "", "the log is in its file"

    with served(writer, mountpoint, tmp_path) as process:
        assert manager.recv(4096).startswith(b"READY=1\n")
        (again,) = snapmount_json("list")
        assert (again["id"], again["created"], again["state"]) == (shown["id"], shown["created"], "active")
        process.send_signal(signal.SIGTERM)
        assert manager.recv(4096).startswith(b"STOPPING=1\n")
        assert process.wait(timeout=60) == 0
    assert traces.found() == []


@pytest.mark.vm
def test_under_a_service_manager_the_journal_has_the_log_with_priorities(
    writer: vm.VM, mountpoint: Path, tmp_path: Path, manager: socket.socket
) -> None:
    with served(writer, mountpoint, tmp_path, JOURNAL_STREAM="") as process:
        manager.recv(4096)
        assert snapmount_json("list")[0]["server"]["log"] is None
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert any("<6>" in line and "this is the snapshot's moment" in line for line in lines)
    assert all(re.match(r"<[2-7]>\S", line) for line in lines), lines


@pytest.fixture
def systemd(tmp_path: Path, mountpoint: Path) -> Iterator[service_manager.Manager]:
    """A real one, which knows the units, and of them where the command lies and where this test mounts."""
    if not service_manager.SYSTEMD.exists():
        pytest.skip("this host lacks systemd: run contrib/setup --test")
    for unit in (UNIT, RECOVER):
        shutil.copy(unit, tmp_path)
        drop_in = tmp_path / f"{unit.name}.d" / "test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(
            "[Service]\n"
            f"ExecSearchPath={Path(SNAPMOUNT).parent}:/usr/sbin:/usr/bin:/sbin:/bin\n"
            f"Environment=SNAPMOUNT_MOUNTPOINT={mountpoint}\n"
        )
    with service_manager.running(tmp_path) as manager:
        yield manager


@pytest.mark.sample
@pytest.mark.vm
def test_systemd_starts_it_restarts_it_when_it_is_killed_and_stops_it(
    writer: vm.VM, mountpoint: Path, systemd: service_manager.Manager
) -> None:
    unit = UNIT.name.replace("@", f"@{writer.name}")
    systemd.systemctl("start", unit)
    (shown,) = snapmount_json("list")
    assert systemd.property(unit, "ActiveState") == "active"
    assert systemd.property(unit, "MainPID") == str(shown["server"]["pid"])
    assert systemd.property(unit, "StatusText") == f"snapshot {shown['id']}, mounted at {mountpoint}"
    before = read_direct(mountpoint / "vda.raw")

    os.kill(shown["server"]["pid"], signal.SIGKILL)
    wait_for(lambda: systemd.property(unit, "NRestarts") == "1", "systemd starts it again")
    wait_for(lambda: systemd.property(unit, "ActiveState") == "active", "it has re-attached")
    (again,) = snapmount_json("list")
    assert (again["id"], again["created"], again["state"]) == (shown["id"], shown["created"], "active")
    assert read_direct(mountpoint / "vda.raw") == before

    after = systemd.property(unit, "After").split()
    assert {"libvirtd.service", "libvirt-guests.service"} <= set(after), "at shutdown it ends before VMs and libvirt do"
    systemd.systemctl("stop", unit)
    assert systemd.property(unit, "Result") == "success"
    assert traces.found() == []


@pytest.mark.vm
def test_a_unit_that_cannot_start_has_failed_and_is_not_tried_again(systemd: service_manager.Manager) -> None:
    unit = UNIT.name.replace("@", "@snapmount-test-no-such")
    with pytest.raises(RuntimeError, match="control process exited with error code"):
        systemd.systemctl("start", unit)
    assert (systemd.property(unit, "ExecMainStatus"), systemd.property(unit, "NRestarts")) == ("3", "0")
    assert systemd.property(unit, "ActiveState") == "failed"


@pytest.mark.vm
def test_what_the_unit_cannot_recover_does_not_end_what_it_has_recovered(
    mountpoint: Path, systemd: service_manager.Manager
) -> None:
    gone = mountpoint.with_name(f"{mountpoint.name}-gone")
    with contextlib.ExitStack() as stack:
        vms = [vm.running(f"{vm.PREFIX}-{name}", [vm.Disk("vda")], start=False) for name in ("kept", "gone")]
        kept, other = [stack.enter_context(each) for each in vms]
        gone.mkdir()
        for each, place in ((kept, mountpoint), (other, gone)):
            servers.kill(snapmount_json(each.name, place), and_standby=True)
            subprocess.run(["umount", "-l", place], check=True)
        gone.rmdir()
        systemd.systemctl("start", RECOVER.name)
        assert systemd.property(RECOVER.name, "ExecMainStatus") == "3", "the mountpoint does not exist"
        assert (state_of(kept.name)[0], state_of(other.name)[0]) == ("active", "dead")
        assert systemd.property(RECOVER.name, "ActiveState") == "active"
        read_direct(mountpoint / "vda.raw")

        systemd.systemctl("stop", RECOVER.name)
        wait_for(lambda: len(snapmount_json("list")) == 1, "it ends what it serves")
        snapmount("delete", other.name)
        assert traces.found() == []


def test_each_line_of_what_is_logged_gets_its_priority() -> None:
    assert priorities.prioritised(40, "it broke\nTraceback") == "<3>it broke\n<3>Traceback"
    assert [priorities.prioritised(level, "x")[:3] for level in (10, 20, 30, 50)] == ["<7>", "<6>", "<4>", "<2>"]


def test_an_abstract_socket_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0snapmount-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@snapmount-test-{os.getpid()}")
        notify.notify(notify.READY, "STATUS=fine")
        assert sock.recv(100) == b"READY=1\nSTATUS=fine"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/no/such/socket"])
def test_where_nobody_can_be_told_nothing_breaks(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.notify(notify.READY)


@pytest.mark.parametrize("name", [UNIT.name, RECOVER.name])
def test_the_units_are_well_formed(tmp_path: Path, name: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("this host lacks systemd-analyze: run contrib/setup --test")
    unit = tmp_path / name.replace("@", "@vm1")
    own = re.sub("(?m)^(ExecStart=-?)snapmount ", rf"\1{SNAPMOUNT} ", UNIT.with_name(name).read_text())
    unit.write_text(own)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
