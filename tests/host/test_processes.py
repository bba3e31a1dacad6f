"""Processes are told apart from later ones with the same pid, and from those of another boot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapmount.host import endings
from snapmount.host.processes import Process, is_stopped

from ..rig.libvirtd import wait_for


def test_a_process_is_itself_each_time_one_looks_and_no_other() -> None:
    own = Process.of_pid(os.getpid())
    assert own.pid == os.getpid()
    assert Process.of_pid(os.getpid()) == own
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        process = Process.of_pid(child.pid)
        assert process.pid == child.pid
        assert process.start_ticks >= own.start_ticks
        assert process != replace(process, start_ticks=process.start_ticks + 1), "a later process with the same pid"


def test_a_process_of_another_boot_is_none_of_this() -> None:
    own = Process.of_pid(os.getpid())
    assert own.runs()
    assert not replace(own, boot_id="another").runs()
    replace(own, boot_id="another").send(signal.SIGKILL)


def test_a_process_that_is_stopped_is_known_and_ends_when_it_is_asked_to() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        process = Process.of_pid(child.pid)
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: is_stopped(child.pid), "it is stopped")
        trio.run(endings.end, process, "a test", 60)
        assert child.wait() == -signal.SIGTERM
    assert not is_stopped(child.pid)


def test_a_process_that_has_ended_is_an_oserror() -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    with pytest.raises(OSError, match="No such"):
        Process.of_pid(child.pid)


@pytest.mark.parametrize("name", ["a b", ") R 1 2", "((", "(x) S 0"])
def test_a_process_may_have_any_name(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/cat")
    own = Process.of_pid(os.getpid())
    with subprocess.Popen([program], stdin=subprocess.PIPE) as child:
        comm = Path(f"/proc/{child.pid}/comm")  # the kernel sets it a moment after Popen() knows of the execve(2)
        wait_for(lambda: comm.read_text() == f"{name}\n", "the process has its name")
        assert Process.of_pid(child.pid).start_ticks >= own.start_ticks > 0


def test_ps_shows_a_process_as_it_calls_itself_and_nothing_that_steers_a_terminal() -> None:
    """It has a short command line at first."""
    code = "import sys; from snapmount.host import titles; titles.show(*sys.argv[1:]); print(flush=True); input()"
    title = "snapmount: server of \x1b[2Ja'b \xfc (84b8ec7e), and more than there was room for before " + "x" * 200
    command = [sys.executable, "-c", code, title, "snap\nmount"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        assert shown == title.replace("\x1b", "\\x1b")
        assert Path(f"/proc/{process.pid}/comm").read_text() == "snap\\nmount\n"
        process.stdin.write(b"\n")
