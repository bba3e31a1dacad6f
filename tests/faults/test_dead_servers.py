"""The server, or the command that waits for it, is ended by a signal: what is shown, and what is left."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from ..rig import traces, vm
from ..rig.command import SNAPMOUNT, snapmount, snapmount_json, state_of
from ..rig.libvirtd import wait_for
from ..rig.signals import interrupted

pytestmark = pytest.mark.vm


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
