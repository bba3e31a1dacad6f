"""Several commands at once, or several things asked of one: none of them spoils another."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import trio

from snapmount import hypervisor
from snapmount.errors import StateError
from snapmount.lifecycle import planning
from snapmount.lifecycle.planning import Request
from snapmount.records.store import Store
from snapmount.sources import kinds
from snapmount.sources.pull import planning as pull
from snapmount.sources.source import Subject

from ..rig import traces, vm
from ..rig.command import SNAPMOUNT, snapmount, snapmount_json

pytestmark = pytest.mark.vm


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
        (won,) = snapmount_json("list")
        holder = rf"starting, of process {won['server']['pid']}"
        there = f"{writer.name} has a snapshot already: {won['id']}"
        assert re.search(rf"^snapmount: {there}, ({holder}|mounted at {won['mountpoint']})$", complaint, re.MULTILINE)
        snapmount("delete", writer.name)
    finally:
        second.rmdir()
        third.rmdir()


async def test_a_plan_that_meets_a_snapshot_taken_meanwhile_says_so(
    writer: vm.VM, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the disk has a block job, which could be ended by hand: it is the snapshot's."""

    async def let_another_take_it(_: Subject) -> None:
        await trio.to_thread.run_sync(snapmount, writer.name, mountpoint)

    monkeypatch.setattr(pull, "_check_no_job", let_another_take_it)
    request, store = Request(writer.name, None, writer.uri), Store.of_user(kinds.check)
    async with hypervisor.connected(writer.uri) as connection:
        with pytest.raises(StateError, match=f"has a snapshot already: [0-9a-f]+, mounted at {mountpoint}"):
            await planning.make(request, store, connection, print)
    snapmount("delete", writer.name)


def test_delete_of_several_goes_on_after_an_error(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    done = snapmount("delete", "no-such", writer.name, check=False)
    assert done.returncode == 3
    assert "no-such" in done.stderr
    assert traces.found() == []
