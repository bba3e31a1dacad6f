"""libvirt's connections, by its own test driver, which needs no daemon."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
import trio

from snapmount import hypervisor
from snapmount.boot import definition
from snapmount.core.user import User
from snapmount.errors import NotFoundError, StateError, UnreachableError
from snapmount.hypervisor import Domain
from snapmount.hypervisor import agent as agent_module

from ..boot.test_definition import WISH


async def test_a_vm_name_that_is_no_utf_8_is_not_found() -> None:
    async with hypervisor.connected("test:///default") as connection:
        with pytest.raises(NotFoundError):
            await connection.domain("vm\udcff")


UUID = "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11"
UNLABELLED = f"<domain><name>vm1</name><uuid>{UUID}</uuid><seclabel type='none' model='dac'/></domain>"


def test_whom_qemu_runs_as_is_told_by_its_process_where_no_label_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it runs a process as another user")
    monkeypatch.setattr("snapmount.hypervisor.identity.SYSTEM_PIDS", tmp_path)
    monkeypatch.setattr("snapmount.hypervisor.identity.LIBVIRT", tmp_path / "none")
    assert hypervisor.qemu_user(UNLABELLED).uid == 0, "it does not run"
    command = ["sh", "-c", "read line", "qemu", "-uuid", UUID]
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=1234, group=2345, extra_groups=[3456]) as qemu:
        (tmp_path / "whatever.pid").write_text(f"{qemu.pid}\n")
        assert hypervisor.qemu_user(UNLABELLED) == User(1234, 2345, (3456,))


def test_whom_the_qemu_of_a_vm_that_is_shut_off_will_run_as_is_told_by_libvirt_s_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: an ordinary user's QEMU runs as that user")
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path, nobody.pw_uid, 0)
    monkeypatch.setattr("snapmount.hypervisor.identity.SYSTEM_PIDS", tmp_path)
    monkeypatch.setattr("snapmount.hypervisor.identity.LIBVIRT", tmp_path)
    found = hypervisor.qemu_user("<domain/>")
    assert (found.uid, found.gid) == (nobody.pw_uid, nobody.pw_gid)


def test_whom_qemu_runs_as_is_not_guessed_where_it_runs_and_cannot_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: an ordinary user's QEMU runs as that user")
    monkeypatch.setattr("snapmount.hypervisor.identity.SYSTEM_PIDS", tmp_path)
    with pytest.raises(StateError, match=f"vm1: whom its QEMU runs as cannot be told: .* no file in {tmp_path} names"):
        hypervisor.qemu_user(UNLABELLED.replace("<domain>", "<domain id='3'>"))


DOMAIN = "<domain type='test'><name>vm1</name><memory>1024</memory><os><type>hvm</type></os></domain>"


async def test_a_scratch_vm_is_known_by_its_mark() -> None:
    async with hypervisor.connected("test:///default") as connection:
        original = await connection.start(DOMAIN, persistent=False)
        assert await original.scratch_vm_of() is None
        derived = definition.derive(await original.xml(), replace(WISH, accelerator="test", disks={}))
        scratch = await connection.start(derived.xml, persistent=False)
        assert await scratch.scratch_vm_of() == WISH.snapshot
        for each in (scratch, original):
            await each.stop()
        assert await scratch.scratch_vm_of() is None, "it has ended"


class AVm:
    """A VM of a libvirt that does what those of the tests cannot be made to."""

    def name(self) -> str:
        return "vm1"

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        return "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11"


# -- the start of the backup job ---------------------------------------------------------------------------------------

JOB = "<domainbackup><server transport='unix' socket='/run/ours.sock'/></domainbackup>"


class Slow(AVm):
    """The start of its job has begun, and ends when it may."""

    def __init__(self) -> None:
        self.begins, self.may_end = threading.Event(), threading.Event()
        self.job: str | None = None
        self.was_aborted = False

    def backupBegin(self, job: str, _checkpoint: None, _flags: int) -> None:  # noqa: N802
        self.begins.set()
        self.may_end.wait()
        self.job = job

    def backupGetXMLDesc(self) -> str:  # noqa: N802
        if self.job is None:
            none = libvirt.libvirtError("no backup job")
            none.err = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP,)
            raise none
        return self.job

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        runs = self.begins.is_set() and not self.was_aborted
        return {"type": 2, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP} if runs else {"type": 0}

    def abortJob(self) -> None:  # noqa: N802
        self.was_aborted = True
        self.job = None


async def test_a_job_whose_start_is_interrupted_has_started_by_the_time_it_is_looked_for() -> None:
    vm = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Domain(vm).begin_backup, JOB)
        await trio.to_thread.run_sync(vm.begins.wait)
        nursery.cancel_scope.cancel()
        threading.Timer(0.2, vm.may_end.set).start()
    assert vm.job == JOB


async def test_a_job_whose_start_was_given_up_is_ended_all_the_same() -> None:
    vm = Slow()
    with pytest.raises(UnreachableError, match=r"did not answer within 0\.05 s: start the backup job"):
        await Domain(vm).begin_backup(JOB, 0.05)
    threading.Timer(0.2, vm.may_end.set).start()
    await Domain(vm).end_backup("/run/ours.sock")
    assert vm.was_aborted


async def test_no_job_is_waited_for_where_none_starts() -> None:
    vm = Slow()
    await Domain(vm).end_backup("/run/ours.sock")
    vm.job = JOB
    await Domain(vm).end_backup("/run/another.sock")
    assert not vm.was_aborted


# -- the guest agent ---------------------------------------------------------------------------------------------------


class WithAgent(AVm):
    """`asked` is asked for the guest's time."""

    def __init__(self, asked: Any, is_alive: bool = True) -> None:
        self.getTime = asked
        self.isAlive = lambda: is_alive

    def connect(self) -> AVm:
        return self


def refuse() -> None:
    raise libvirt.libvirtError("client socket is closed")


async def test_an_agent_that_has_got_stuck_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has answered libvirt's guest-sync, and nothing since: libvirt waits for ever."""
    monkeypatch.setattr(agent_module, "AGENT_S", 0.05)
    ended = threading.Event()
    try:
        assert not await Domain(WithAgent(ended.wait)).agent.answers()
    finally:
        ended.set()


async def test_an_agent_that_is_not_there_does_not_answer() -> None:
    assert not await Domain(WithAgent(refuse)).agent.answers()


async def test_a_closed_connection_says_nothing_of_the_agent() -> None:
    with pytest.raises(UnreachableError, match="vm1: the connection to libvirt is closed: client socket is closed"):
        await Domain(WithAgent(refuse, is_alive=False)).agent.answers()


DISABLED = {  # by the version of the agent, while file systems are frozen
    "2.12": "The command {} has been disabled for this instance",
    "7.2": "Command {} has been disabled: the agent is in frozen state",
    "10.0": "Command {} has been disabled: the command is not allowed",
}
LIBVIRT = "internal error: unable to execute QEMU agent command '{}': {}"


def refusing(command: str, why: str) -> Callable[[], None]:
    """As libvirt tells of the agent's refusal to obey that command."""

    def fail() -> None:
        error = libvirt.libvirtError(LIBVIRT.format(command, why.format(command)))
        error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, error.args[0])
        raise error

    return fail


async def why_not_frozen(why: str, asked: Callable[[], None]) -> str:
    """What is said where the agent refuses to freeze the guest, and is asked for its time then."""
    vm = WithAgent(asked)
    vm.fsFreeze = refusing("guest-fsfreeze-freeze", why)  # type: ignore[attr-defined]
    with pytest.raises(StateError) as caught:
        await Domain(vm).agent.freeze()
    assert "--quiesce" in (caught.value.remedy or "")
    return caught.value.message


@pytest.mark.parametrize("version", DISABLED)
async def test_a_guest_that_is_frozen_already_is_told_so_whatever_its_agent_says(version: str) -> None:
    why = DISABLED[version]
    assert (
        await why_not_frozen(why, refusing("guest-get-time", why))
        == "vm1: the guest's file systems cannot be frozen: they are frozen already, by another program"
    )


async def test_an_agent_that_must_not_freeze_is_told_from_one_that_has_frozen() -> None:
    said = await why_not_frozen(DISABLED["10.0"], lambda: None)
    assert said.endswith("cannot be frozen: the guest agent's configuration does not allow it")


async def test_what_keeps_a_guest_from_being_frozen_is_told_in_its_agent_s_words() -> None:
    said = await why_not_frozen("failed to freeze /mnt: Permission denied", lambda: None)
    assert "failed to freeze /mnt: Permission denied" in said
