"""`snapmount doctor` on this host as it is, and broken in many ways; the commands it tells mend what it has found."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snapmount import hypervisor
from snapmount.doctor import virtualisation
from snapmount.doctor.subject import Subject
from snapmount.host import kvm

from ..rig import libvirtd, vm
from ..rig.account import Account
from ..rig.command import SNAPMOUNT, snapmount, snapmount_json

pytestmark = pytest.mark.vm
SYSTEM = ("--connect", "qemu:///system")

Finding = dict[str, Any]


def examined(*args: str | Path, within: Sequence[str] = (), code: int | None = None) -> list[Finding]:
    """What the doctor finds, run by a command such as nsenter; its exit code is `code`, or that of its verdict."""
    done = subprocess.run(
        [*within, SNAPMOUNT, "doctor", "--json", *SYSTEM, *map(str, args)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert done.returncode == (7 if document["verdict"] == "problem" else 0)
    assert code in (None, done.returncode)
    for finding in document["findings"]:
        assert (finding["remedy"] is not None) == (finding["status"] in ("warning", "problem"))
    return list(document["findings"])


def the(findings: list[Finding], check: str, text: str = "") -> Finding:
    """The finding of that check that says so."""
    (found,) = [finding for finding in findings if finding["check"] == check and text in finding["text"]]
    return found


def mend(finding: Finding, within: Sequence[str] = ()) -> None:
    """Run the command that the finding tells, as it stands there."""
    remedy = finding["remedy"].removeprefix("sudo ")
    subprocess.run([*within, "sh", "-c", remedy], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture
def namespace(libvirt: None) -> Iterator[list[str]]:
    """A mount namespace of its own, where things can be broken; yields the command that runs others in it."""
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "inf"]) as keeper:
        try:
            before = os.readlink("/proc/self/ns/mnt")
            libvirtd.wait_for(lambda: os.readlink(f"/proc/{keeper.pid}/ns/mnt") != before, "the namespace is there")
            libvirtd.wait_for(lambda: "shared:" not in _mountinfo(keeper.pid), "its mounts are private")
            yield ["nsenter", f"--target={keeper.pid}", "--mount", "--wd=/"]
        finally:
            keeper.kill()


def _mountinfo(pid: int) -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text()


def run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True)


# -- a host that is well -----------------------------------------------------------------------------------------------


@pytest.mark.sample
def test_all_that_snapshots_need_is_there_and_nothing_is_changed(clean: None) -> None:
    findings = examined(code=0)
    assert {finding["status"] for finding in findings} <= {"ok", "warning"}
    assert the(findings, "QEMU")["text"].endswith("with backup jobs")
    assert "QEMU's user can write there" in the(findings, "scratch")["text"]
    assert the(findings, "snapshots" if Path("/run/snapmount").exists() else "runtime directory")["status"] == "ok"
    text = snapmount("doctor", *SYSTEM).stdout
    assert text.splitlines()[-1].endswith("what snapshots need is there")
    assert "\x1b" not in text


def test_an_ordinary_user_is_told_of_what_that_user_needs(account: Account) -> None:
    done = account.run(*account.snapmount(), "doctor", "--json")
    document = json.loads(done.stdout)
    findings = document["findings"]
    assert document["connect"] == "qemu:///session"
    assert the(findings, "libvirt")["text"].endswith("at qemu:///session")
    assert str(account.home / ".local/share/snapmount") in the(findings, "scratch")["text"]
    assert the(findings, "iSCSI")["status"] == "skipped"
    assert "--allow-other" in [finding["check"] for finding in findings]
    assert not (account.home / ".local/share/snapmount").exists()


def test_a_usual_port_that_something_else_has_is_told_with_the_one_that_luns_get(clean: None) -> None:
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # it is so already
            other.bind(("127.0.0.1", 3260))
            other.listen()
        finding = the(examined(code=0), "iSCSI", "is in use by")
    assert finding["status"] == "ok"
    assert re.fullmatch(r"127.0.0.1:3260 is in use by .*: LUNs get port 32[6-9]\d unless .*", finding["text"])


# -- libvirt -----------------------------------------------------------------------------------------------------------


def test_a_libvirt_daemon_that_does_not_run_is_started_by_the_command_that_is_told(clean: None) -> None:
    with libvirtd.stopped():
        findings = examined(code=7)
        finding = the(findings, "libvirt")
        assert "libvirt cannot be reached at qemu:///system" in finding["text"]
        assert the(findings, "scratch")["status"] == "skipped"
        mend(finding)
        libvirtd.wait_for(libvirtd.answers, "libvirt answers")
        assert the(examined(code=0), "libvirt")["status"] == "ok"


def test_a_libvirt_daemon_that_hangs_costs_seconds_only(libvirt: None) -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{directory}/socket")
        silent.listen()
        findings = examined("--connect", f"qemu:///system?socket={directory}/socket", code=7)
    assert "no answer within 10 s" in the(findings, "libvirt")["text"]


@contextlib.asynccontextmanager
async def probing(connect: str) -> AsyncIterator[Probing]:
    yield Probing()


class Probing:
    """A connection to a libvirt daemon that has yet to probe its QEMUs, one of which hangs."""

    async def version(self) -> str:
        return "9.0.0"

    async def qemu(self) -> None:
        await trio.sleep_forever()


async def test_a_libvirt_that_answers_but_probes_qemu_for_long_is_not_told_to_hang(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypervisor, "connected", probing)
    findings = await virtualisation.check(Subject.here("qemu:///session", None))
    assert [(each.check, each.status.value) for each in findings] == [
        ("libvirt", "ok"),
        ("QEMU", "problem"),
        ("scratch", "skipped"),
        ("confinement", "skipped"),
    ]
    assert findings[1].text == "libvirt answers, but has not told within 30 s what QEMU can do"
    assert findings[1].remedy == "virsh -c qemu:///session capabilities"


def test_a_user_is_told_that_vms_of_root_s_libvirt_need_root(account: Account) -> None:
    command = [*account.snapmount(), "doctor", *SYSTEM]
    done = subprocess.run(command, **account.options(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert "  try: sudo snapmount doctor --connect qemu:///system" in done.stdout.splitlines()


# -- Python modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["libvirt", "nbd", "pyfuse3"])
def test_a_python_module_that_is_missing_is_a_problem_and_no_traceback(libvirt: None, module: str) -> None:
    without = f"import sys; sys.modules[{module!r}] = None; from snapmount.cli.commands import main; sys.exit(main())"
    command = [sys.executable, "-c", without, "doctor", *SYSTEM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
    lines = done.stdout.splitlines()
    (number,) = [number for number, line in enumerate(lines) if f"{module} is missing" in line]
    assert lines[number].startswith("PROBLEM  Python modules")
    assert "install" in lines[number + 1]


@pytest.mark.parametrize("module", ["libvirt", "nbd", "pyfuse3", "rich"])
def test_other_verbs_say_which_python_module_is_missing(libvirt: None, mountpoint: Path, module: str) -> None:
    without = f"import sys; sys.modules[{module!r}] = None; from snapmount.cli.commands import main; sys.exit(main())"
    words = ["list"] if module == "rich" else ["vm1", str(mountpoint)]
    done = subprocess.run([sys.executable, "-c", without, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "")
    assert "is missing" in done.stderr
    assert "install" in done.stderr.splitlines()[1]
    assert "Traceback" not in done.stderr


# -- FUSE --------------------------------------------------------------------------------------------------------------


def test_a_dev_fuse_that_is_closed_to_users_is_opened_by_the_command_that_is_told(
    namespace: list[str],
    account: Account,
) -> None:
    device = account.home / "fuse"
    run(*namespace, "mount", "-t", "tmpfs", "none", account.runtime)  # no nodev: a device can be opened there
    device = account.runtime / "fuse"
    run(*namespace, "mknod", "--mode=600", device, "c", "10", "229")
    run(*namespace, "mount", "--bind", device, "/dev/fuse")
    as_user = ["setpriv", f"--reuid={account.user}", f"--regid={account.user}", "--clear-groups"]
    if subprocess.run(["getent", "group", account.user], capture_output=True).returncode:
        as_user[2] = "--regid=65534"
    closed = _fuse_of(account, [*namespace, *as_user])
    assert closed["text"] == "/dev/fuse cannot be opened by you: Permission denied"
    mend(closed, namespace)
    assert _fuse_of(account, [*namespace, *as_user])["status"] == "ok"


def _fuse_of(account: Account, within: list[str]) -> Finding:
    environment = [f"HOME={account.home}", f"XDG_RUNTIME_DIR={account.home}/none", f"PATH={os.environ['PATH']}"]
    command = [*within, "env", *environment, *map(str, account.snapmount()), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return the(json.loads(done.stdout)["findings"], "FUSE", "/dev/fuse")


def test_a_host_without_dev_fuse_is_told_to_load_the_module(namespace: list[str]) -> None:
    run(*namespace, "mount", "-t", "tmpfs", "none", "/dev")
    finding = the(examined(within=namespace, code=7), "FUSE")
    assert (finding["text"], finding["remedy"]) == ("/dev/fuse: missing", "modprobe fuse")


# -- what QEMU needs ---------------------------------------------------------------------------------------------------


def test_a_scratch_place_that_qemu_s_user_cannot_reach_is_opened_by_the_command_that_is_told(mountpoint: Path) -> None:
    place = mountpoint / "it's locked" / "scratch"
    place.mkdir(parents=True)
    place.parent.chmod(0o700)
    findings = examined("--scratch-dir", place, code=7)
    finding = the(findings, "scratch", f"{place} is not writable by QEMU")
    assert [each["status"] for each in findings if each["check"] == "scratch"] == ["ok", "problem"]
    mend(finding)
    assert the(examined("--scratch-dir", place, code=0), "scratch", str(place))["status"] == "ok"
    assert os.listdir(place) == []


def test_a_scratch_place_that_does_not_exist_is_made_by_the_command_that_is_told(mountpoint: Path) -> None:
    place = mountpoint / "a b"
    mend(the(examined("--scratch-dir", place, code=7), "scratch", "does not exist"))
    assert the(examined("--scratch-dir", place, code=0), "scratch", str(place))["status"] == "ok"


def test_a_scratch_place_in_memory_is_a_problem(namespace: list[str], mountpoint: Path) -> None:
    run(*namespace, "mount", "-t", "tmpfs", "none", mountpoint)
    finding = the(examined("--scratch-dir", mountpoint, within=namespace, code=7), "scratch", "in memory (tmpfs)")
    assert "--scratch-dir" in finding["remedy"]


def test_a_private_root_is_made_shared_by_the_command_that_is_told(namespace: list[str]) -> None:
    finding = the(examined(within=namespace, code=0), "mount propagation")
    assert finding["status"] == "warning"
    mend(finding, namespace)
    assert the(examined(within=namespace, code=0), "mount propagation")["status"] == "ok"


async def test_a_dev_kvm_that_is_closed_to_qemu_s_user_is_told_of_though_root_can_open_it(
    libvirt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(10, 232))
    monkeypatch.setattr(kvm, "DEVICE", str(device))
    [finding] = [
        each for each in await virtualisation.check(Subject.here("qemu:///system", None)) if each.check == "KVM"
    ]
    assert finding.status.value == "warning"
    assert re.search(r"/dev/kvm cannot be opened by QEMU's user \(uid \d+\): .* probes QEMU anew", finding.text)
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "missing"))
    assert "KVM" not in [each.check for each in await virtualisation.check(Subject.here("qemu:///system", None))]


# -- what snapshots leave ----------------------------------------------------------------------------------------------


def test_a_runtime_directory_that_is_open_to_others_is_closed_by_the_command_that_is_told(namespace: list[str]) -> None:
    run(*namespace, "mount", "-t", "tmpfs", "none", "/run")
    run(*namespace, "mkdir", "-m", "755", "/run/snapmount")
    finding = the(examined(within=namespace), "runtime directory")
    assert (finding["status"], finding["remedy"]) == ("problem", "chmod 700 /run/snapmount")
    mend(finding, namespace)
    assert the(examined(within=namespace), "runtime directory")["status"] == "ok"


def test_a_snapshot_that_nobody_serves_is_left_to_recover(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    assert the(examined(code=0), "snapshots")["status"] == "ok"
    os.kill(taken["server"]["pid"], signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        libvirtd.wait_for(lambda: snapmount_json("list")[0]["state"] == "dead", "the snapshot is dead")
    finding = the(examined(code=0), "snapshots")
    assert finding["text"] == f"{taken['id']} of {writer.name} is dead"
    assert finding["remedy"] == "snapmount recover"
    snapmount("delete", taken["id"])
