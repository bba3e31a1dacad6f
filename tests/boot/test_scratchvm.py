"""Records of scratch VMs, their names and files, and processes that are not ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snapmount.boot import launch, scratchvm
from snapmount.boot.launch import check_name, default_name
from snapmount.boot.scratchvm import ScratchVm
from snapmount.core.document import from_document, to_document
from snapmount.core.leftout import LeftOut
from snapmount.core.user import User
from snapmount.errors import StateError, UsageError
from snapmount.host import endings
from snapmount.host.processes import Process

from ..rig.libvirtd import wait_for
from ..strategies import PROPERTY, file_names, processes, text

scratch_vms = st.builds(
    ScratchVm,
    name=text,
    uuid=st.uuids().map(str),
    accelerator=st.sampled_from(["kvm", "qemu"]),
    overlays=file_names,
    is_kept=st.booleans(),
    process=processes,
    is_started=st.booleans(),
    pid_file=st.none() | file_names,
    left_out=st.lists(st.builds(LeftOut, name=text, why=text)).map(tuple),
    notes=st.lists(text).map(tuple),
    has_console=st.booleans(),
)
DEAD = Process(1, 1, "")  # not the first process, which was started before that


def a_vm(**changes: object) -> ScratchVm:
    vm = ScratchVm("vm1-scratch", "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11", "kvm", "/overlays", False, DEAD)
    return replace(vm, **changes)  # type: ignore[arg-type]


# -- records -----------------------------------------------------------------------------------------------------------


@PROPERTY
@given(scratch_vms)
def test_a_record_is_read_as_it_was_written(vm: ScratchVm) -> None:
    assert from_document(ScratchVm, to_document(vm)) == vm


def test_records_are_kept_by_uuid_and_listed_by_name(tmp_path: Path) -> None:
    first, second = a_vm(name="b"), a_vm(name="a", uuid="6695eb01-f6a4-8304-79aa-97f2502e193f")
    assert scratchvm.load_all(tmp_path) == []
    for vm in (first, second):
        scratchvm.write(tmp_path, vm)
    assert scratchvm.load_all(tmp_path) == [second, first]
    assert scratchvm.load(tmp_path, first.uuid) == first
    scratchvm.write(tmp_path, replace(first, is_started=True))
    assert scratchvm.load(tmp_path, first.uuid) == replace(first, is_started=True)
    scratchvm.forget(tmp_path, first)
    scratchvm.forget(tmp_path, first)
    assert scratchvm.load_all(tmp_path) == [second]


def test_nothing_is_written_where_the_snapshot_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scratchvm.write(tmp_path / "gone", a_vm())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"name": 1}', "null"])
def test_a_record_that_cannot_be_read_hides_no_other_and_is_named(tmp_path: Path, content: str) -> None:
    broken, other = a_vm(), a_vm(uuid="6695eb01-f6a4-8304-79aa-97f2502e193f")
    for vm in (broken, other):
        scratchvm.write(tmp_path, vm)
    path = tmp_path / "scratch-vm" / f"{broken.uuid}.json"
    path.write_text(content)
    assert scratchvm.load_all(tmp_path) == [other]
    [(uuid, error)] = scratchvm.unreadable(tmp_path).items()
    assert uuid == broken.uuid
    assert str(path) in error.message
    with pytest.raises(StateError, match=str(path)):
        scratchvm.load(tmp_path, broken.uuid)


def test_other_files_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "scratch-vm").mkdir()
    for name in ("x.json", "6695eb01-f6a4-8304-79aa-97f2502e193f.json.new", "..json"):
        (tmp_path / "scratch-vm" / name).write_text("{")
    assert (scratchvm.load_all(tmp_path), scratchvm.unreadable(tmp_path)) == ([], {})


def test_the_state_is_that_of_its_process() -> None:
    own = Process.of_pid(os.getpid())
    assert a_vm(process=own).state == "starting"
    assert a_vm(process=own, is_started=True).state == "running"
    assert a_vm(is_started=True).state == "ending"
    assert a_vm(is_started=True, is_kept=True).state == "shut off"


def test_without_a_console_there_is_no_log_of_it() -> None:
    assert a_vm().document()["console_log"] == "/overlays/console.log"
    assert a_vm(has_console=False).document()["console_log"] is None


def test_one_that_is_kept_runs_again_where_a_process_has_its_uuid_whatever_it_is_called_now(tmp_path: Path) -> None:
    vm = a_vm(is_started=True, is_kept=True, pid_file=str(tmp_path / "scratch.pid"))
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-uuid", vm.uuid]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        (tmp_path / "renamed.pid").write_text(f"{process.pid}\n")
        wait_for(lambda: vm.state == "running", "it has its command line")  # which comes last when it is started
        assert replace(vm, uuid="another").state == "shut off"
    assert vm.state == "shut off"


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a\nb", "a\x1b[2J"])
def test_what_cannot_be_a_vm_s_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_a_long_name_is_cut_where_a_character_begins() -> None:
    uuid = "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11"
    assert default_name("vm1", uuid) == "vm1-scratch-0b7d"
    for original in ("x" * 240, "xä" * 80, "\U0001f5a5" * 62):
        name = default_name(original, uuid)
        assert original.startswith(name.removesuffix("-scratch-0b7d"))
        assert 240 - 4 < len(name.encode()) <= 240
        assert check_name(name) == name
    with pytest.raises(UsageError, match="is too long for the name of a VM: 241 bytes, of at most 240"):
        check_name("x" * 241)
    assert default_name("a'b" * 30, uuid) == "a'b" * 28 + "a-scratch-0b7d", "libvirt escapes it, in the name of a file"


# -- its start ---------------------------------------------------------------------------------------------------------


def test_who_waits_for_libvirt_is_told_what_it_may_be_about(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SLOW_S", 0.01)
    with launch.told_if_slow("vm1-scratch-0b7d"):
        wait_for(lambda: caplog.messages, "it is told")
    [message] = caplog.messages
    assert message.startswith("libvirt is starting vm1-scratch-0b7d: it may be probing QEMU")
    assert "snapmount doctor" in message


def test_who_need_not_wait_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    with launch.told_if_slow("vm1-scratch-0b7d"):
        assert threading.active_count() > before
    wait_for(lambda: threading.active_count() == before, "nothing is to be told any more")
    assert caplog.messages == []


# -- its files ---------------------------------------------------------------------------------------------------------


async def test_no_link_in_the_place_of_the_variables_is_followed(tmp_path: Path) -> None:
    """The directory is that of QEMU's user, and root copies into it."""
    variables, target, precious = (tmp_path / name for name in ("variables", "nvram.fd", "precious"))
    variables.write_bytes(b"variables")
    precious.write_bytes(b"precious")
    me = User(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    await launch._copy(str(variables), str(target), me)
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"variables", 0o600)
    target.unlink()
    target.symlink_to(precious)
    with pytest.raises(StateError, match="File exists"):
        await launch._copy(str(variables), str(target), me)
    assert precious.read_bytes() == b"precious"


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [0, -1, 1 << 80, 1 << 30])
def test_a_pid_that_nobody_can_have_is_of_no_process(pid: int) -> None:
    assert not Process(pid, 1, "boot").runs()


def test_a_pid_that_a_thread_has_by_now_is_of_no_process() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert thread.native_id
        assert not Process(thread.native_id, 1, "boot").runs()
    finally:
        ended.set()
        thread.join()


async def test_a_process_that_has_ended_is_not_another_with_its_pid() -> None:
    own = Process.of_pid(os.getpid())
    assert own.runs()
    assert not replace(own, start_ticks=own.start_ticks + 1).runs()
    with trio.fail_after(10):
        await endings.wait(DEAD)
    DEAD.send(signal.SIGKILL)


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ignores SIGTERM."""
    ignoring = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        yield child
        child.kill()


async def test_a_process_that_ignores_sigterm_is_killed(stubborn: subprocess.Popen[bytes]) -> None:
    process = Process.of_pid(stubborn.pid)
    with trio.fail_after(20):
        await endings.end(process, "a test", 0.05)
        await endings.wait(process)
    assert not process.runs(), "also while nobody has waited for it"
    assert stubborn.wait() == -signal.SIGKILL
