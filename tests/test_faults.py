"""What happens to a snapshot, and to the guest, when something else breaks: on real processes, none of them faked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .rig import libvirtd, prefix, traces, vm
from .rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json
from .rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
SEED = 7


def state_of(name: str) -> tuple[str, str | None]:
    """As `list` tells: `show` would re-attach a dead one."""
    (shown,) = (each for each in snapmount_json("list") if each["vm"]["name"] == name)
    return shown["state"], shown["reason"]


def assert_reads_fail(file: Path, with_errno: int = errno.EIO) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
        file.read_bytes()
    assert caught.value.errno == with_errno


def test_a_killed_server_leaves_a_state_that_list_shows_and_delete_cleans_up(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    os.kill(taken["server"]["pid"], signal.SIGKILL)
    wait_for(lambda: state_of(writer.name) == ("dead", None), "list shows that the server is dead")
    assert "dead: its server process is gone" in snapmount("list").stdout
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
        os.listdir(mountpoint)
    assert caught.value.errno == errno.ENOTCONN, "a dead mount is not an empty directory"
    assert writer.has_job()

    snapmount("delete", writer.name)
    assert traces.found() == []
    assert not writer.has_job()


@pytest.mark.parametrize(
    ("end_it", "reason"),
    [
        (lambda guest: guest.virsh("destroy", guest.name), "{name} was destroyed"),
        (lambda guest: os.kill(guest.qemu_pid(), signal.SIGKILL), "{name} has crashed"),
        (lambda guest: guest.virsh("domjobabort", guest.name), "the backup job was ended by somebody else"),
    ],
    ids=["destroyed", "QEMU killed", "job aborted"],
)
def test_a_lost_snapshot_says_why_and_gives_no_bytes(
    own_vm: vm.VM, mountpoint: Path, end_it: Callable[[vm.VM], None], reason: str
) -> None:
    snapmount(own_vm.name, mountpoint)
    (mountpoint / "vda.raw").read_bytes()  # the kernel's page cache holds all of it now
    end_it(own_vm)
    wait_for(lambda: state_of(own_vm.name) == ("lost", reason.format(name=own_vm.name)), "list says why")
    assert reason.format(name=own_vm.name) in snapmount("list").stdout
    assert_reads_fail(mountpoint / "vda.raw")
    assert_reads_fail(mountpoint / "vdb.raw")
    assert (mountpoint / "domain.xml").read_text().startswith("<domain"), "what is known still can be read"
    snapmount("delete", own_vm.name)
    assert traces.found() == []


def test_a_guest_that_shuts_itself_down_ends_its_snapshot(clean: None, mountpoint: Path) -> None:
    with vm.running(f"{vm.PREFIX}-down", [vm.Disk("vda")], agent=True) as guest:
        guest.agent_answers()
        snapmount(guest.name, mountpoint)
        guest.virsh("shutdown", "--mode", "agent", guest.name)
        wait_for(lambda: state_of(guest.name) == ("lost", f"{guest.name} was shut down"), "list says why")
        assert_reads_fail(mountpoint / "vda.raw")
        snapmount("delete", guest.name)


def test_a_vm_started_anew_is_not_taken_for_the_one_of_the_snapshot(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount(own_vm.name, mountpoint)
    own_vm.virsh("destroy", own_vm.name)
    own_vm.start()
    wait_for(lambda: state_of(own_vm.name)[0] == "lost", "the loss is seen")
    assert_reads_fail(mountpoint / "vda.raw")
    snapmount("delete", own_vm.name)
    snapmount(own_vm.name, mountpoint)
    snapmount("delete", own_vm.name)


def test_the_job_of_another_program_is_left_alone(own_vm: vm.VM, mountpoint: Path) -> None:
    """Ours is aborted and another one started before ours is deleted: that one is not ours to end."""
    snapmount(own_vm.name, mountpoint)
    own_vm.virsh("domjobabort", own_vm.name)
    own_vm.begin_foreign_backup()
    snapmount("delete", own_vm.name)
    assert own_vm.has_job()
    message = refused(own_vm.name, mountpoint, code=4)
    assert "has a backup job already, of another program" in message
    assert "virsh domjobinfo" in message


def test_the_view_outlives_libvirtd(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    before = read_direct(mountpoint / "vda.raw")
    with libvirtd.stopped():
        assert read_direct(mountpoint / "vda.raw") == before
        assert state_of(writer.name) == ("active", None)
        message = refused("delete", writer.name, code=8)
        assert "libvirt cannot be reached" in message
        assert f"snapmount delete {snapmount_json('list')[0]['id']}" in message
        assert state_of(writer.name)[0] == "leftover"
    assert writer.has_job()
    snapmount("delete", writer.name)
    assert not writer.has_job()


def test_the_view_outlives_a_restart_of_libvirtd(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    before = read_direct(mountpoint / "vdb.raw")
    with libvirtd.stopped():
        pass
    assert read_direct(mountpoint / "vdb.raw") == before
    snapmount("delete", writer.name)
    assert traces.found() == []


def test_a_read_that_qemu_does_not_answer_fails_at_its_deadline_alone(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount("--read-timeout", "1", own_vm.name, mountpoint)
    files = [mountpoint / "vda.raw", mountpoint / "vdb.raw"]
    qemu = own_vm.qemu_pid()
    os.kill(qemu, signal.SIGSTOP)
    try:
        assert_reads_fail(files[0])
        assert (mountpoint / "snapshot.json").read_bytes(), "the mount lives"
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert prefix.prove(SEED, [read_direct(file) for file in files]) > 0
    snapmount("delete", own_vm.name)


def test_a_snapshot_can_be_deleted_while_a_read_hangs(own_vm: vm.VM, mountpoint: Path) -> None:
    snapmount("--read-timeout", "1000", own_vm.name, mountpoint)
    qemu = own_vm.qemu_pid()
    os.kill(qemu, signal.SIGSTOP)
    with subprocess.Popen(["cat", mountpoint / "vda.raw"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        try:
            wait_for(lambda: waits_for_fuse(reader.pid), "the reader hangs")
            deleting = subprocess.Popen([SNAPMOUNT, "delete", own_vm.name])
            _, complaint = reader.communicate(timeout=60)
            assert reader.returncode != 0
            assert str(mountpoint).encode() in complaint, "EIO, or ENOTCONN where the kernel asks again"
        finally:
            os.kill(qemu, signal.SIGCONT)
    assert deleting.wait(timeout=60) == 0
    assert traces.found() == []


def waits_for_fuse(pid: int) -> bool:
    """Whether the process sleeps until a request of it is answered."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_end_of_the_command_before_the_view_is_ready_leaves_nothing(
    writer: vm.VM, mountpoint: Path, number: int
) -> None:
    with subprocess.Popen([SNAPMOUNT, writer.name, mountpoint], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list(traces.RUNTIME.glob("*/record.json")), "the record is there")
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the view was ready before the signal came: the test must signal earlier")
    if number != signal.SIGKILL:
        assert (process.returncode, complaint) == (130, "snapmount: interrupted; nothing was left behind\n")
    wait_for(lambda: traces.found() == [], "all is undone")
    assert not writer.has_job()


def test_two_commands_at_once_on_one_vm_one_wins_and_the_other_says_why(writer: vm.VM, mountpoint: Path) -> None:
    second = mountpoint / "second"
    second.mkdir()
    third = mountpoint / "third"
    third.mkdir()
    try:
        commands = [
            subprocess.Popen(
                [SNAPMOUNT, writer.name, each], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            for each in (second, third)
        ]
        said = [(command.communicate(timeout=60)[1], command.returncode) for command in commands]
        assert sorted(code for _, code in said) == [0, 4]
        (complaint,) = (text for text, code in said if code)
        assert writer.name in complaint
        assert len(snapmount_json("list")) == 1
        snapmount("delete", writer.name)
    finally:
        second.rmdir()
        third.rmdir()


def test_delete_of_several_goes_on_after_an_error(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    done = snapmount("delete", "no-such", writer.name, check=False)
    assert done.returncode == 3
    assert "no-such" in done.stderr
    assert traces.found() == []
