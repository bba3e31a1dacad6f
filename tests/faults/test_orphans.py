"""What a power cut or a reboot leaves is removed by `recover`, and nothing else: that is named, and left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapmount.core.document import to_document
from snapmount.host.identity import Host
from snapmount.records.journal import UNFINISHED_S, VERSION, mount_of
from snapmount.sources.pull.state import PullState

from ..rig import power, servers, traces, vm
from ..rig.command import snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
ID = "00c0ffee"
UUID = "6695eb01-f6a4-4304-b9aa-97f2502e193f"


@contextlib.contextmanager
def directory_of_snapshot(path: Path, owner: int = 0) -> Iterator[Path]:
    """A directory as snapmount makes them, which no snapshot owns; at the end it is removed."""
    traces.SCRATCH.mkdir(mode=0o711, exist_ok=True)
    path.mkdir(mode=0o700)
    os.chown(path, owner, owner)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        journal(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            traces.SCRATCH.rmdir()


def journal(directory: Path) -> Path:
    return traces.SCRATCH / f"{directory.name}.json"


def pull_state(directory: Path, socket_path: str) -> dict[str, Any]:
    return to_document(PullState(socket_path, str(directory)))


def write_journal(directory: Path, guest: vm.VM, changes: dict[str, Any] | None = None) -> None:
    """As snapmount writes it before it makes the directory."""
    document = {
        "version": VERSION,
        "directory": str(directory),
        "mount": mount_of(str(directory)),
        "owner_uid": 0,
        "runtime": str(traces.RUNTIME),
        "snapshot": ID,
        "vm_name": guest.name,
        "vm_uuid": guest.uuid(),
        "connect": guest.uri,
        "mount_source": f"snapmount:{guest.name}:{ID}",
        "source": pull_state(directory, f"/var/lib/libvirt/qemu/domain-0-{guest.name}/snapmount-{ID}.sock"),
        "boot_id": "of another boot",
        "host": to_document(Host.this()),
        "scratch_vm": None,
    }
    journal(directory).write_text(json.dumps(document | (changes or {})))


@pytest.mark.sample
def test_scratch_and_overlays_of_a_snapshot_from_before_a_reboot_are_removed(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount(own_vm.name, mountpoint)
    booted = snapmount_json("boot", "--keep", own_vm.name)
    (taken,) = snapmount_json("list")
    power.cut(own_vm, keeps_runtime=False)
    assert snapmount_json("list") == []
    assert Path(booted["overlay_directory"]).exists()
    own_vm.start()

    done = snapmount_json("recover")
    scratch = taken["scratch"]["directory"]
    assert {each["path"]: each["removed"] for each in done["orphans"]} == {
        scratch: True,
        booted["overlay_directory"]: True,
    }
    why = next(each["why"] for each in done["orphans"] if each["path"] == scratch)
    assert why == f"of snapshot {taken['id']} of {own_vm.name}, before the host was restarted"
    assert own_vm.virsh_fails("dominfo", booted["name"]), "the kept scratch VM, whose disks are gone, goes with them"
    assert traces.found() == []
    assert snapmount("recover").stdout == "nothing to recover\n"


def test_a_runtime_record_from_before_a_reboot_is_cleaned_up(own_vm: vm.VM, mountpoint: Path) -> None:
    """Where the runtime directory is not on a tmpfs: no process is taken for the server of then."""
    snapmount(own_vm.name, mountpoint)
    power.cut(own_vm, keeps_runtime=True)
    assert "removed: the host has been restarted" in snapmount("recover").stdout
    assert traces.found() == []


def test_an_orphan_whose_job_still_runs_is_left_until_that_is_ended(writer: vm.VM, mountpoint: Path) -> None:
    """As if somebody had removed /run/snapmount."""
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    shutil.rmtree(traces.RUNTIME)
    done = snapmount("recover", check=False)
    assert done.returncode == 8
    assert f"the backup job of snapshot {taken['id']} runs on {writer.name}" in done.stderr
    assert writer.has_job()
    remedy = next(line for line in done.stderr.splitlines() if "try:" in line).partition("try: ")[2]
    assert remedy == f"virsh -c qemu:///system domjobabort {writer.name} && snapmount recover"
    writer.abort_job()
    assert "before its runtime record has gone" in snapmount("recover").stdout
    wait_for(lambda: traces.found() == [], "nothing is left, once its standby has looked again")
    assert os.listdir(mountpoint) == [], "its dead mount is gone too"


def test_a_snapshot_that_is_served_without_a_record_is_left_with_the_command_that_ends_it(
    writer: vm.VM, mountpoint: Path
) -> None:
    """Its server lives, and QEMU keeps the point in time."""
    snapmount(writer.name, mountpoint)
    shutil.rmtree(traces.RUNTIME)
    done = snapmount("recover", check=False)
    assert done.returncode == 8
    assert f"of {writer.name} is served at {mountpoint}, though its runtime record has gone" in done.stderr
    assert f"try: umount {mountpoint}   (" in done.stderr
    assert f"try: umount {mountpoint}" in snapmount("umount", mountpoint, check=False).stderr
    assert len((mountpoint / "vda.raw").read_bytes()) > 0
    subprocess.run(["umount", mountpoint], check=True)
    wait_for(lambda: traces.found() == [], "it has ended")


def test_what_was_made_before_its_record_is_removed(writer: vm.VM) -> None:
    (traces.RUNTIME / ID).mkdir(parents=True)
    assert f"removed {traces.RUNTIME / ID}" in snapmount("recover").stdout
    assert traces.found() == []


def test_a_file_of_the_journal_that_was_never_finished_is_removed(writer: vm.VM) -> None:
    """Not one of just now: its writer may be another host's."""
    with directory_of_snapshot(traces.SCRATCH / f"snapmount-{ID}") as path:
        path.rmdir()
        unfinished = Path(f"{journal(path)}.new")
        unfinished.write_text('{"version"')
        assert snapmount("recover").stdout == "nothing to recover\n"
        long_ago = time.time() - 2 * UNFINISHED_S
        os.utime(unfinished, (long_ago, long_ago))
        assert snapmount("recover").stdout == f"removed {unfinished}, who was to write it has died\n"
        assert traces.found() == []


def test_a_directory_that_no_journal_names_is_named_and_left(writer: vm.VM) -> None:
    with directory_of_snapshot(traces.SCRATCH / f"snapmount-{ID}") as path:
        (path / "vda.qcow2").write_text("whose?")
        done = snapmount("recover", check=False)
        assert done.returncode == 8
        assert f"{path} is left: nothing tells whose it is" in done.stderr
        assert f"try: rm -r {path}" in done.stderr
        assert (path / "vda.qcow2").read_text() == "whose?"


def test_a_directory_that_holds_more_than_ours_or_belongs_to_others_is_named_and_left(writer: vm.VM) -> None:
    with directory_of_snapshot(traces.SCRATCH / f"snapmount-{ID}") as path:
        write_journal(path, writer)
        (path / "thesis.tex").write_text("years of work")
        done = snapmount("recover", check=False)
        assert (done.returncode, done.stdout) == (8, "")
        assert f"{path} holds what is not snapmount's: thesis.tex" in done.stderr
        (path / "thesis.tex").unlink()
        os.chown(path, 1234, 1234)
        assert f"{path} belongs to uid 1234, not to 0" in snapmount("recover", check=False).stderr
        os.chown(path, 0, 0)
        assert f"removed {path}" in snapmount("recover").stdout
        assert traces.found() == []


def test_a_link_in_its_place_is_not_followed(writer: vm.VM, tmp_path: Path) -> None:
    (tmp_path / "vda.qcow2").write_text("of others")
    path = traces.SCRATCH / f"snapmount-{ID}"
    with directory_of_snapshot(path):
        path.rmdir()
        path.symlink_to(tmp_path)
        write_journal(path, writer)
        assert f"{path} is not a directory" in snapmount("recover", check=False).stderr
        assert (tmp_path / "vda.qcow2").exists()
        path.unlink()


def test_a_journal_that_names_what_it_should_not_is_an_error_and_nothing_is_removed(
    writer: vm.VM, tmp_path: Path
) -> None:
    path = traces.SCRATCH / f"snapmount-{ID}"
    with directory_of_snapshot(path):
        for directory in (str(tmp_path), "/", str(tmp_path / "snapmount-0badcafe"), f"snapmount-{ID}"):
            write_journal(path, writer, {"directory": directory})
            done = snapmount("recover", check=False)
            assert done.returncode == 8
            assert f"{journal(path)} cannot be read" in done.stderr
        journal(path).write_text("{")
        assert f"{journal(path)} cannot be read" in snapmount("recover", check=False).stderr
        assert path.exists()


def test_the_tpm_of_a_scratch_vm_from_before_a_reboot_is_removed_and_no_other(writer: vm.VM) -> None:
    """libvirt has forgotten the VM, which was a transient one, and so does not remove its TPM."""
    states = Path("/var/lib/libvirt/swtpm")
    ours, other = states / UUID, states / UUID.replace("6", "7")
    try:
        for each in (ours, other):
            (each / "tpm2").mkdir(parents=True)
            (each / "tpm2" / "tpm2-00.permall").write_bytes(b"secret")
        with directory_of_snapshot(traces.SCRATCH / f"snapmount-{ID}-vm-{UUID[:8]}") as path:
            (path / "nvram.fd").write_bytes(bytes(4))
            write_journal(path, writer, {"scratch_vm": f"../{UUID}"})
            assert f"{journal(path)} cannot be read" in snapmount("recover", check=False).stderr
            write_journal(path, writer, {"scratch_vm": UUID})
            assert f"removed {path}" in snapmount("recover").stdout
        assert not ours.exists()
        assert other.exists()
    finally:
        for each in (ours, other):
            shutil.rmtree(each, ignore_errors=True)
        with contextlib.suppress(OSError):
            states.rmdir()


def test_the_socket_of_a_qemu_that_was_killed_is_removed(writer: vm.VM) -> None:
    directory = Path(f"/var/lib/libvirt/qemu/domain-999-{writer.name}")
    directory.mkdir()
    path = directory / f"snapmount-{ID}.sock"
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        with directory_of_snapshot(traces.SCRATCH / f"snapmount-{ID}") as scratch:
            write_journal(scratch, writer, {"source": pull_state(scratch, str(path))})
            snapmount("recover")
        assert not path.exists()
    finally:
        shutil.rmtree(directory)
