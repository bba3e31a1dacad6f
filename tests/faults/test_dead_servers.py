"""The server, its standby, or the command that waits for it, is ended by a signal: what is shown, and what is left."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from snapmount.host import signals
from snapmount.lifecycle import server

from ..rig import dying, interrupting, servers, traces, vm
from ..rig.command import SNAPMOUNT, snapmount, snapmount_json, state_of
from ..rig.libvirtd import wait_for
from ..rig.signals import interrupted

pytestmark = pytest.mark.vm


@pytest.mark.sample
def test_a_killed_server_leaves_a_state_that_list_shows_and_delete_cleans_up(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    assert "dead: its server process is gone" in snapmount("list").stdout
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
        os.listdir(mountpoint)
    assert caught.value.errno == errno.ENOTCONN, "a dead mount is not an empty directory"
    assert writer.has_job()

    snapmount("delete", writer.name)
    assert traces.found() == []
    assert not writer.has_job()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_end_of_the_command_before_the_view_is_ready_leaves_nothing(
    writer: vm.VM, mountpoint: Path, number: int
) -> None:
    code, complaint = interrupted(
        [SNAPMOUNT, writer.name, str(mountpoint)],
        lambda: list(traces.RUNTIME.glob("*/record.json")),
        number,
        undo=lambda: snapmount("delete", writer.name),
    )
    if number != signal.SIGKILL:
        assert (code, complaint) == (130, "snapmount: interrupted; nothing was left behind\n")
    wait_for(lambda: traces.found() == [], "all is undone")
    assert not writer.has_job()


@pytest.mark.parametrize("also", [dying.NOBODY, dying.COMMAND, dying.STANDBY])
def test_a_server_that_is_killed_before_the_view_is_ready_leaves_nothing(
    writer: vm.VM, mountpoint: Path, also: str
) -> None:
    """Its standby undoes the snapshot, or else the command that has waited for it."""
    code, complaint = dying.run("snapmount.hypervisor.domain:Domain.begin_backup", also, writer.name, mountpoint)
    if also == dying.COMMAND:
        assert code == -signal.SIGKILL
    else:
        why = "the server process has died before the view was ready: signal 9; nothing was left behind"
        assert (code, complaint) == (1, f"snapmount: {why}\n")
    wait_for(lambda: traces.found() == [], "all is undone")
    assert not writer.has_job()


def test_an_interrupted_take_whose_server_is_killed_while_it_undoes_that_leaves_nothing(
    writer: vm.VM, mountpoint: Path
) -> None:
    code, complaint = interrupted(
        dying.command("snapmount.lifecycle.teardown:free", dying.STANDBY, writer.name, mountpoint),
        lambda: list(traces.RUNTIME.glob("*/record.json")),
        signal.SIGINT,
        undo=lambda: snapmount("delete", writer.name),
    )
    assert (code, complaint) == (130, "snapmount: interrupted; nothing was left behind\n")
    assert traces.found() == []
    assert not writer.has_job()


@pytest.mark.parametrize("boots", [False, True])
def test_a_ctrl_c_when_the_view_is_just_ready_leaves_nothing_too(writer: vm.VM, mountpoint: Path, boots: bool) -> None:
    words = ["boot", writer.name] if boots else [writer.name, mountpoint]
    code, complaint = interrupting.run("snapmount.lifecycle.server:_wait_ready", *words)
    assert (code, complaint) == (130, "snapmount: interrupted; nothing was left behind\n")
    assert traces.found() == []
    assert not writer.has_job()


def test_a_ctrl_c_that_comes_when_all_is_done_changes_nothing_and_what_was_done_is_told(
    writer: vm.VM, helper: vm.VM, mountpoint: Path
) -> None:
    """Of each verb that makes or ends something: signals without a pause, from then to the end of the process."""
    interrupted = interrupting.told
    assert "mounted at" in interrupted("snapmount.cli.present:Shown.taken", writer.name, mountpoint)
    interrupted("snapmount.host.interruptible:run", "delete", writer.name)
    assert traces.found() == []
    assert "mounted at" in interrupted("snapmount.cli.present:Shown.taken", writer.name, mountpoint)
    assert "attached read-only" in interrupted("snapmount.cli.present:attached", "attach", writer.name, helper.name)
    (shown,) = snapmount_json("list")
    assert (shown["state"], len(shown["attachments"])) == ("active", 2)
    interrupted("snapmount.host.interruptible:run", "detach", writer.name)
    assert helper.targets() == ["vda"]
    servers.kill(shown)
    assert "re-attached" in interrupted("snapmount.cli.outcomes:recovery_text", "recover")
    assert "runs on snapshot" in interrupted("snapmount.cli.present:booted", "boot", writer.name)
    assert [each["state"] for each in snapmount_json("show", writer.name)["scratch_vms"]] == ["running"]
    interrupted("snapmount.host.interruptible:run", "umount", "--force", str(mountpoint))
    assert traces.found() == []


def test_a_ctrl_c_when_a_snapshot_is_just_re_attached_leaves_it_so_and_tells(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    assert "re-attached" in interrupting.told("snapmount.lifecycle.server:_wait_ready", "recover", taken["id"])
    assert state_of(writer.name) == ("active", None)
    snapmount("delete", writer.name)


def test_a_signal_that_comes_after_the_end_of_the_server_reaches_nobody() -> None:
    ours, theirs = socket.socketpair()
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        with ours, server._signals_passed_on(ours):
            theirs.close()
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.take_noted()
        assert not signals.have_come()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
