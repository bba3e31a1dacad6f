"""What a terminal shows while something takes its time; it stays out of the way of all else that is said there."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.cli import progress

# Python counts the threads after a fork, when the one that has ended for it is there again (since 3.12).
WARNS_OF_NOTHING = "ignore:This process:DeprecationWarning"
START = """
import os, sys
from snapmount.cli import output, progress
progress.AFTER_S = progress.STEP_S = 0.01
"""
LINE = rb"[|/\\-] taking a snapshot \(\d+s\)"
CLEARED = b"\r\x1b[K"
PATIENCE_S = 30.0


class Terminal:
    """What a program has written to its terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = b""

    def shows(self, pattern: bytes) -> None:
        """Wait until it shows this, from now on."""
        start, end = len(self.text), time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text[start:]):
            assert time.monotonic() < end, self.text
            self._read()

    def _read(self) -> None:
        if select.select([self._descriptor], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the program has gone
                self.text += os.read(self._descriptor, 4096)

    def after(self, process: subprocess.Popen[bytes]) -> bytes:
        """All of it, when the program has ended with success."""
        assert process.wait(PATIENCE_S) == 0, self.text
        while select.select([self._descriptor], [], [], 0)[0]:
            try:
                self.text += os.read(self._descriptor, 4096)
            except OSError:
                break
        return self.text


@contextlib.contextmanager
def running(script: str, term: str = "xterm") -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """A program whose standard error is a terminal; it gets a line on standard input for each go()."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-W", WARNS_OF_NOTHING, "-c", START + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": term, "COLUMNS": "80"},
        ) as process:
            try:
                yield Terminal(ours), process
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


def go(process: subprocess.Popen[bytes], line: str = "") -> None:
    assert process.stdin
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def on_screen(text: bytes) -> bytes:
    """What is left of it on the terminal."""
    lines = text.replace(b"\r\n", b"\n").split(b"\n")
    return b"\n".join(line.rpartition(CLEARED)[2] for line in lines)


def test_what_takes_its_time_is_shown_until_it_is_done() -> None:
    script = "with output.progress.shown('taking a snapshot'): sys.stdin.readline()"
    with running(script) as (terminal, process):
        terminal.shows(LINE)
        terminal.shows(LINE)
        go(process)
        assert on_screen(terminal.after(process)) == b""


def test_what_is_told_meanwhile_stays_and_is_not_mixed_with_it() -> None:
    script = """
import logging
from snapmount.host import logs
logs.log_to(output.progress, logging.WARNING, "snapmount: %(message)s")
with output.progress.shown("taking a snapshot"):
    for _ in range(20):
        sys.stdin.readline()
        output.tell("a warning")
        logging.warning("of the log")
    output.print_text("done\\n")
"""
    with running(script) as (terminal, process):
        for _ in range(20):
            terminal.shows(LINE)
            go(process)
        text = terminal.after(process)
        assert process.stdout
        assert process.stdout.read() == b"done\n"
    assert on_screen(text) == b"snapmount: a warning\nsnapmount: of the log\n" * 20


def test_a_child_shows_nothing_and_the_parent_goes_on() -> None:
    """As the server is one; what a thread holds while the process forks is held in the child for ever."""
    script = """
import threading
with output.progress.shown("taking a snapshot"):
    for _ in range(20):
        sys.stdin.readline()
        if not (child := os.fork()):
            with output.progress.cleared():
                os._exit(threading.active_count())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""
    with running(script) as (terminal, process):
        for _ in range(20):
            terminal.shows(LINE)
            go(process)
        assert on_screen(terminal.after(process)) == b""


def test_ctrl_c_ends_it_as_without() -> None:
    script = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with output.progress.shown("taking a snapshot"):
        sys.stdin.readline()
except KeyboardInterrupt:
    output.tell("interrupted")
"""
    with running(script) as (terminal, process):
        terminal.shows(LINE)
        process.send_signal(signal.SIGINT)
        assert on_screen(terminal.after(process)) == b"snapmount: interrupted\n"


@pytest.mark.vm
def test_ctrl_c_while_a_snapshot_is_taken_undoes_it_and_clears_the_terminal(clean: None, tmp_path: Path) -> None:
    """libvirt does not answer; the server has been forked, and what shows the progress is a thread."""
    script = """
from snapmount.cli.commands import main
code = main(["vm1", "--iscsi", "--target", "tgt", "-c", "qemu:///system?socket=" + sys.stdin.readline().strip()])
print(code)
"""
    with socket.socket(socket.AF_UNIX) as libvirt, running(script) as (terminal, process):
        libvirt.bind(str(tmp_path / "libvirt"))
        libvirt.listen()
        go(process, str(tmp_path / "libvirt"))
        libvirt.settimeout(PATIENCE_S)
        with libvirt.accept()[0]:
            terminal.shows(rb"[|/\\-] taking a snapshot of vm1 \(\d+s\)")
            process.send_signal(signal.SIGINT)
            assert on_screen(terminal.after(process)) == b"snapmount: interrupted; nothing was left behind\n"
        assert process.stdout
        assert process.stdout.read() == b"130\n"


@pytest.mark.parametrize("text", ["x" * 500, "世" * 500])
def test_it_keeps_to_one_line(text: str) -> None:
    cut = progress._cut(text, 79)
    assert len(cut.encode("euc-jp")) in (78, 79), "two columns for what takes two bytes there"


@pytest.mark.parametrize("how", ["no terminal", "dumb"])
def test_nothing_is_shown_where_there_is_no_terminal_to_be_cleared(how: str) -> None:
    script = START + "\nwith output.progress.shown('x'):\n    print(output.progress._thread)\n"
    if how == "dumb":
        with running(script, term="dumb") as (terminal, process):
            assert terminal.after(process) == b""
            assert process.stdout
            assert process.stdout.read() == b"None\n"
        return
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env={**os.environ, "TERM": "xterm"})
    assert (done.stdout, done.stderr) == (b"None\n", b"")
