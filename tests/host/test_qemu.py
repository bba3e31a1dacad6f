"""QEMU's processes, found whatever their VMs are called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from snapmount.host import qemu
from snapmount.hypervisor.uri import pid_directory

from ..rig.libvirtd import wait_for

OURS, OTHER = "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11", "5d0a9c95-1c5d-4b61-9cf4-0d9f1a6f8f11"


@pytest.mark.parametrize(
    ("words", "is_ours"),
    [
        (["qemu", "-name", "guest=vm1", "-uuid", OURS, "-no-user-config"], True),
        (["qemu", "-uuid", OTHER], False),
        (["qemu", "-name", f"guest=-uuid {OURS}", "-uuid", OTHER], False),
        (["qemu", "-smbios", f"type=1,uuid={OURS}", "-uuid", OTHER], False),
        (["qemu", "-uuid"], False),
        (["qemu", OURS], False),
        ([], False),
    ],
)
def test_a_vm_s_qemu_is_known_by_its_uuid(words: list[str], is_ours: bool) -> None:
    assert qemu.has_uuid("".join(f"{word}\0" for word in words).encode(), OURS) is is_ours


@pytest.mark.parametrize("name", ["vm1", "a&apos;b&quot;&amp;&lt;&gt;", "\xfcber uns", "renamed"])
def test_it_is_found_whatever_libvirt_calls_its_file(name: str, tmp_path: Path) -> None:
    """Beside it lie files of a VM that has ended, of another, and what is no process id."""
    with running(OURS) as ours, running(OTHER) as other:
        pids = {
            f"{name}.pid": ours.pid,
            "0.pid": other.pid,
            "2.pid": 1 << 22,
            "4.pid": "",
            f"{name}.xml": "<domstatus>",
        }
        for file, content in pids.items():
            (tmp_path / file).write_text(str(content))
        wait_for(lambda: qemu.find(OURS, tmp_path) is not None, "it has its command line")
        assert qemu.find(OURS, tmp_path) == qemu.Qemu(ours.pid, tmp_path / f"{name}.pid")
    assert qemu.find(OURS, tmp_path) is None, "it has ended"


def test_a_process_that_libvirt_does_not_know_is_none_of_its_qemus(tmp_path: Path) -> None:
    """Any user of the host can run one that looks like it."""
    with running(OURS):
        assert qemu.find(OURS, tmp_path) is None
        assert qemu.find(OURS, tmp_path / "missing") is None


def running(uuid: str) -> subprocess.Popen[bytes]:
    """A process with a command line like QEMU's, which ends with the block."""
    return subprocess.Popen(["sh", "-c", "read line", "qemu", "-uuid", uuid], stdin=subprocess.PIPE)


@pytest.mark.parametrize(
    ("environment", "uid", "uri", "directory"),
    [
        ({}, 0, "qemu:///system", "/run/libvirt/qemu"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "qemu:///session", "/run/libvirt/qemu"),
        ({"XDG_RUNTIME_DIR": "/run/user/7", "XDG_CACHE_HOME": "/c"}, 7, "qemu:///system", "/run/libvirt/qemu"),
        (
            {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_CACHE_HOME": "/c"},
            7,
            "qemu:///session",
            "/run/user/7/libvirt/qemu/run",
        ),
        ({"XDG_CACHE_HOME": "/c"}, 7, "qemu:///session", "/c/libvirt/qemu/run"),
        ({"HOME": "/home/u"}, 7, "qemu:///session", "/home/u/.cache/libvirt/qemu/run"),
    ],
)
def test_each_daemon_of_libvirt_has_its_own_place_for_them(
    environment: dict[str, str], uid: int, uri: str, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert pid_directory(uri) == Path(directory)
