"""`snapmount --iscsi`, as a user runs it: a running VM's disks as LUNs of a tgtd, and what the commands say of them.

What the target itself does is looked at in tgt/ and test_lio.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ...rig import libiscsi, prefix, servers, traces, vm
from ...rig.command import SNAPMOUNT, refused, snapmount, snapmount_json
from ...rig.libvirtd import wait_for
from ...rig.tgtd import tgtds

pytestmark = pytest.mark.vm
SEED = 7


@pytest.fixture(autouse=True)
def _tools() -> None:
    libiscsi.skip_where_missing()


@pytest.fixture
def port() -> int:
    return libiscsi.free_port()


TITLES = {
    "open-iscsi": "Linux: open-iscsi, as root",
    "QEMU": "QEMU",
    "libvirt": "libvirt: a VM that runs",
    "Windows PowerShell": "Windows: PowerShell, as administrator",
}
NOT_REACHED = "# none: 127.0.0.1 is reached from this host only; take it with --portal ADDRESS\n"


def url(shown: dict[str, Any], lun: int = 1) -> str:
    """libiscsi's URL of a LUN that `take` has told of."""
    target = shown["iscsi"]
    return f"iscsi://{target['user']}%{target['secret']}@{target['portals'][0]}/{target['iqn']}/{lun}"


def read(shown: dict[str, Any], lun: int, into: Path) -> bytes:
    """All bytes of a LUN."""
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", url(shown, lun), str(into)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return into.read_bytes()


@contextmanager
def logged_in(shown: dict[str, Any]) -> Iterator[None]:
    """An initiator with a session, for as long as the block lasts."""
    command = ["qemu-io", "-f", "raw", "-r", url(shown)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: snapmount_json("show", shown["id"])["iscsi"]["sessions"], "the initiator has logged in")
        yield
        process.kill()


@pytest.mark.sample
def test_the_luns_are_one_moment_of_the_guest_s_disks(writer: vm.VM, port: int, tmp_path: Path) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name)
    assert [(lun["number"], lun["disk"], lun["size_bytes"]) for lun in taken["iscsi"]["luns"]] == [
        (number, disk.name, disk.size) for number, disk in enumerate(writer.disks, 1)
    ]
    assert taken["mountpoint"] is None
    first = [read(taken, lun, tmp_path / "copy") for lun in (1, 2)]
    writes = prefix.prove(SEED, first)
    writer.keeps_writing(3000)
    assert writer.written() > writes, "the guest went on"
    assert [read(taken, lun, tmp_path / "copy") for lun in (1, 2)] == first
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_lun_of_a_running_guest_conforms(writer: vm.VM, port: int) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name)
    for suite in libiscsi.SUITES:
        assert libiscsi.conforms(suite, url(taken)) == libiscsi.TGTD_LACKS.get(suite, set())
    snapmount("delete", writer.name)


def write_in_many_places(image: Path) -> None:
    with image.open("r+b") as f:
        for n in range(400):
            f.seek(n * (64 << 10) + n % 3 * 4096)
            f.write(b"x" * 4096)


@pytest.mark.sample
def test_initiators_are_told_of_the_largest_holes_of_a_disk(
    libvirt: None, clean: None, port: int, mountpoint: Path
) -> None:
    with vm.running(f"{vm.PREFIX}-holes", [vm.Disk("vda", fill=write_in_many_places)], paused=True) as holes:
        look_at_holes(holes, f"127.0.0.1:{port}", mountpoint)


def look_at_holes(holes: vm.VM, portal: str, mountpoint: Path) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", portal, holes.name, mountpoint)
    assert not any("lun" in name for name in os.listdir(mountpoint)), "what backs the LUNs is not listed"
    command = ["qemu-img", "map", "--output=json", "-f", "raw", url(taken)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    exact = json.loads((mountpoint / "vda.map").read_text())
    assert sum(extent["zero"] for extent in exact) == 400
    told_holes = {(extent["start"], extent["length"]) for extent in told if extent["zero"]}
    assert 100 < len(told_holes) < 129
    assert told_holes <= {(extent["start"], extent["length"]) for extent in exact if extent["zero"]}
    assert sum(extent["length"] for extent in told) == holes.disks[0].size
    snapmount("delete", holes.name)


def test_a_mount_and_luns_show_the_same(writer: vm.VM, mountpoint: Path, port: int, tmp_path: Path) -> None:
    portal = f"127.0.0.1:{port}"
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", portal, writer.name, mountpoint)
    assert taken["mountpoint"] == str(mountpoint)
    assert read(taken, 2, tmp_path / "copy") == (mountpoint / "vdb.raw").read_bytes()
    snapmount("umount", mountpoint)


def test_what_take_prints_has_all_that_an_initiator_needs(writer: vm.VM, port: int) -> None:
    said = snapmount("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name).stdout
    target = snapmount_json("show", "--show-secret", writer.name)["iscsi"]
    assert re.fullmatch(r"[A-Za-z0-9]{16}", target["secret"])
    for word in (target["iqn"], f"127.0.0.1:{port}", target["user"], target["secret"]):
        assert word in said
    for lun in target["luns"]:
        assert re.search(rf"LUN {lun['number']}  {lun['disk']}  32 MiB  SNAPMNT {lun['product']}", said)
        assert lun["serial"] in said
    assert (
        f"\n# Linux: open-iscsi, as root\n{target['commands']['open-iscsi']}\nother initiators (QEMU, libvirt): "
        in said
    )
    [others] = re.findall(r"^other .*: snapmount (.*)$", said, re.MULTILINE)
    said = snapmount(*others.split()).stdout
    for name, title in TITLES.items():
        assert f"\n# {title}\n{target['commands'][name] or NOT_REACHED}" in said
    assert target["commands"]["Windows PowerShell"] is None
    said = snapmount("show", "--for", "qemu", writer.name).stdout
    assert [title for title in TITLES.values() if f"\n# {title}\n" in said] == ["QEMU"]
    snapmount("delete", writer.name)


def test_the_secret_is_shown_only_when_it_is_asked_for(writer: vm.VM, port: int) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", "--mutual", writer.name)
    secrets = [taken["iscsi"]["secret"], taken["iscsi"]["mutual_secret"]]
    assert len(set(secrets)) == 2
    for words in (["show"], ["show", "--json"]):
        said = snapmount(*words, writer.name).stdout
        assert taken["iscsi"]["iqn"] in said
        assert not any(secret in said for secret in secrets)
        said = snapmount(*words, "--show-secret", writer.name).stdout
        assert all(secret in said for secret in secrets)
    assert not any(secret in snapmount("list", *words).stdout for words in ([], ["--json"]) for secret in secrets)
    files = [
        path
        for path in Path("/run/snapmount").rglob("*")
        if path.is_file() and not path.is_relative_to(Path("/run/snapmount", taken["id"], "mount"))
    ]
    holding = [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]
    assert [path.name for path in holding] == ["credentials.json"]
    assert holding[0].stat().st_mode & 0o777 == 0o600
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        assert not any(secret.encode() in told for secret in secrets), process
    snapmount("delete", writer.name)


def test_a_secret_of_one_s_own_comes_from_a_file_or_a_pipe(writer: vm.VM, port: int, tmp_path: Path) -> None:
    secret = "my,own=secret:+1"
    (tmp_path / "secret").write_text(f"{secret}\n")
    options = ["--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", "--json", writer.name]
    taken = json.loads(snapmount("--secret-file", tmp_path / "secret", *options).stdout)
    assert taken["iscsi"]["secret"] == secret
    snapmount("delete", writer.name)
    command = [SNAPMOUNT, "--secret-file", "-", *options]
    taken = json.loads(subprocess.run(command, input=f"{secret}\n", capture_output=True, check=True, text=True).stdout)
    assert taken["iscsi"]["secret"] == secret
    snapmount("delete", writer.name)


def test_only_the_named_initiators_are_admitted(writer: vm.VM, port: int) -> None:
    me = "iqn.2024-08.internal.snapmount.tests:me"
    only = ["--initiator", me.upper().replace("IQN", "iqn")]
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", *only, writer.name)
    assert taken["iscsi"]["initiators"] == [me]
    assert libiscsi.logs_in(url(taken), me)
    assert not libiscsi.logs_in(url(taken), f"{me}-not")
    assert not libiscsi.logs_in(url({"iscsi": taken["iscsi"] | {"secret": "wrong-secret-16c"}}), me)
    snapmount("delete", writer.name)


def test_a_snapshot_in_use_is_deleted_by_force_only(writer: vm.VM, port: int) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name)
    with logged_in(taken):
        [session] = snapmount_json("show", writer.name)["iscsi"]["sessions"]
        assert session["address"] == "127.0.0.1"
        said = refused("delete", writer.name, code=4)
        assert session["initiator"] in said
        assert f"snapmount delete --force {taken['id']}" in said
        assert re.search(r"2 LUNs, 1 session, .* read", snapmount("list").stdout)
        assert session["initiator"] in snapmount("show", writer.name).stdout
        snapmount("delete", "--force", writer.name)
        assert traces.found() == []


def test_sigterm_withdraws_luns_that_are_in_use(writer: vm.VM, port: int) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name)
    with logged_in(taken):
        os.kill(taken["server"]["pid"], signal.SIGTERM)
        wait_for(lambda: not traces.found(), "the snapshot has ended")


def test_it_is_told_when_a_snapshot_expires(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json("--expire", "1h", writer.name, mountpoint)
    assert taken["expires"] > taken["created"]
    assert re.search(r"^expires +in 59m ", snapmount("show", writer.name).stdout, re.MULTILINE)
    snapmount("delete", writer.name)


def test_a_snapshot_ends_by_itself_when_it_expires(writer: vm.VM, port: int, mountpoint: Path) -> None:
    portal = f"127.0.0.1:{port}"
    with logged_in(snapmount_json("--expire", "6s", "--iscsi", "--target", "tgt", "--portal", portal, writer.name)):
        wait_for(lambda: not traces.found(), "the snapshot has expired")
    snapmount("--expire", "1s", writer.name, mountpoint)
    wait_for(lambda: not traces.found(), "the mount has expired too")
    assert os.listdir(mountpoint) == []


def test_after_sigkill_of_the_server_delete_removes_all(writer: vm.VM, port: int) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name)
    with logged_in(taken):
        servers.kill(taken)
        snapmount("delete", writer.name)  # nobody can read any more: no --force is needed
        assert traces.found() == []


def test_a_portal_in_use_is_told_with_its_user_and_the_snapshot_undone(writer: vm.VM, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        said = refused("--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{port}", writer.name, code=4)
    assert f"127.0.0.1:{port} is in use by" in said
    assert f"(pid {os.getpid()})" in said
    assert "  try: snapmount --iscsi --portal 127.0.0.1 VM " in said
    assert traces.found() == []


@contextmanager
def usual_port_in_use() -> Iterator[None]:
    """Something listens at port 3260 of all addresses, as the service of Debian's tgt does."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("0.0.0.0", 3260))
        except OSError:  # it is so already
            yield
            return
        other.listen()
        yield


def test_snapshots_at_once_take_the_next_ports_that_are_free(libvirt: None, clean: None, tmp_path: Path) -> None:
    names = [f"{vm.PREFIX}-{number}" for number in (1, 2)]
    with ExitStack() as stack:
        stack.enter_context(usual_port_in_use())
        for name in names:
            stack.enter_context(vm.running(name, [vm.Disk("vda")], paused=True))
        command = [SNAPMOUNT, "--iscsi", "--target", "tgt", "--json"]
        started = [subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in names]
        taken = [json.loads(each.communicate(timeout=120)[0]) for each in started]
        ports = [int(each["iscsi"]["portals"][0].removeprefix("127.0.0.1:")) for each in taken]
        assert 3260 < min(ports) < max(ports) < 3360
        for name, shown in zip(names, taken, strict=True):
            assert len(read(shown, 1, tmp_path / "copy")) == shown["disks"][0]["size_bytes"]
            assert shown["iscsi"]["portals"][0] in snapmount("show", name).stdout
        snapmount("delete", *names)


def test_a_tgtd_that_has_died_is_told_of(shared_vm: vm.VM, clean: None) -> None:
    taken = snapmount_json("--iscsi", "--target", "tgt", shared_vm.name)
    [tgtd] = tgtds(Path("/run/snapmount", taken["id"]))
    os.kill(tgtd, signal.SIGKILL)
    assert "2 LUNs, tgt does not answer" in snapmount("list").stdout
    assert "tgt does not answer: nobody can log in" in snapmount("show", shared_vm.name).stdout
    snapmount("delete", shared_vm.name)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--portal", "127.0.0.1:0"], 2, "a port is a number from 1 to 65535"),
        (["--portal", "localhost"], 2, "'localhost' is not an IP address"),
        (["--portal", "192.0.2.77"], 2, "this host does not have the address 192.0.2.77"),
        (["--initiator", "not_a_name"], 2, "not the name of an iSCSI initiator"),
        (
            ["--secret-file", "/dev/null"],
            2,
            "--secret-file /dev/null: a CHAP secret has 12 to 16 printable ASCII characters",
        ),
        (["--secret-file", "/no/such/file"], 2, "/no/such/file: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_made(
    writer: vm.VM, options: list[str], code: int, message: str
) -> None:
    assert message in refused("--iscsi", "--target", "tgt", *options, writer.name, code=code)
    assert traces.found() == []


def test_an_ordinary_user_is_told_who_may() -> None:
    options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    said = refused("--iscsi", "--connect", "qemu:///system", "vm1", code=2, **options)
    assert "only root can publish over iSCSI\n  try: sudo snapmount --iscsi --connect qemu:///system vm1\n" in said
    said = refused("--iscsi", "--connect", "qemu:///session", "vm1", code=2, **options)
    assert "no VM at qemu:///session" in said
    assert "sudo" not in said
