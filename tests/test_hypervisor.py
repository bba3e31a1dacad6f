"""libvirt's connections, by its own test driver, which needs no daemon."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from snapmount import hypervisor
from snapmount.core import scratchdomain
from snapmount.core.user import User
from snapmount.errors import NotFoundError, UnreachableError
from snapmount.hypervisor import Domain
from snapmount.hypervisor import agent as agent_module

from .test_scratchdomain import WISH


async def test_a_vm_name_that_is_no_utf_8_is_not_found() -> None:
    async with hypervisor.connected("test:///default") as connection:
        with pytest.raises(NotFoundError):
            await connection.domain("vm\udcff")


UNLABELLED = "<domain><name>vm1</name><seclabel type='none' model='dac'/></domain>"


def test_whom_qemu_runs_as_is_told_by_its_process_where_no_label_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it runs a process as another user")
    monkeypatch.setattr("snapmount.hypervisor.domain.SYSTEM_PIDS", tmp_path)
    assert hypervisor.qemu_user(UNLABELLED).uid == 0, "it does not run"
    with subprocess.Popen(["sleep", "60"], user=1234, group=2345, extra_groups=[3456]) as qemu:
        (tmp_path / "vm1.pid").write_text(f"{qemu.pid}\n")
        assert hypervisor.qemu_user(UNLABELLED) == User(1234, 2345, (3456,))
        qemu.kill()


DOMAIN = "<domain type='test'><name>vm1</name><memory>1024</memory><os><type>hvm</type></os></domain>"


async def test_a_scratch_vm_is_known_by_its_mark() -> None:
    async with hypervisor.connected("test:///default") as connection:
        original = await connection.start(DOMAIN, persistent=False)
        assert await original.scratch_vm_of() is None
        derived = scratchdomain.derive(await original.xml(), replace(WISH, accelerator="test", disks={}))
        scratch = await connection.start(derived.xml, persistent=False)
        assert await scratch.scratch_vm_of() == WISH.snapshot
        for each in (scratch, original):
            await each.stop()
        assert await scratch.scratch_vm_of() is None, "it has ended"


# -- the guest agent ---------------------------------------------------------------------------------------------------


class AVm:
    """A VM of a libvirt that does what those of the tests cannot be made to: `asked` is asked for the guest's time."""

    def __init__(self, asked: Any, is_alive: bool = True) -> None:
        self.getTime = asked
        self.isAlive = lambda: is_alive

    def name(self) -> str:
        return "vm1"

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        return "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11"

    def connect(self) -> AVm:
        return self


def refuse() -> None:
    raise libvirt.libvirtError("client socket is closed")


async def test_an_agent_that_has_got_stuck_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has answered libvirt's guest-sync, and nothing since: libvirt waits for ever."""
    monkeypatch.setattr(agent_module, "AGENT_S", 0.05)
    ended = threading.Event()
    try:
        assert not await Domain(AVm(ended.wait)).agent.answers()
    finally:
        ended.set()


async def test_an_agent_that_is_not_there_does_not_answer() -> None:
    assert not await Domain(AVm(refuse)).agent.answers()


async def test_a_closed_connection_says_nothing_of_the_agent() -> None:
    with pytest.raises(UnreachableError, match="vm1: the connection to libvirt is closed: client socket is closed"):
        await Domain(AVm(refuse, is_alive=False)).agent.answers()
