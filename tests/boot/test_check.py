"""What tells that the guest of a scratch VM has booted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapmount.boot import check
from snapmount.boot.check import Console, WaitFor
from snapmount.errors import UsageError


def test_what_to_wait_for_is_the_agent_a_time_or_a_pattern() -> None:
    assert WaitFor.parse("agent").agent
    assert WaitFor.parse("90s").seconds == 90
    assert WaitFor.parse("5").seconds == 5
    pattern = WaitFor.parse("^vm1 login:").pattern
    assert pattern
    assert pattern.search(b"booting\r\nvm1 login: ")
    assert not pattern.search(b"no vm1 login: ")


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'\(' is no regular expression"):
        WaitFor.parse("(")


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_nothing_is_nothing_to_wait_for(text: str) -> None:
    """As where a script's variable is not set: a check that always passes would be worse than none."""
    with pytest.raises(UsageError, match="--wait-for is empty"):
        WaitFor.parse(text)


@pytest.mark.parametrize("text", ["0", "0s", "1.5h", "5min", "90 s"])
def test_a_time_that_is_none_is_not_taken_for_a_pattern(text: str) -> None:
    with pytest.raises(UsageError, match=f"--wait-for: '{text}' is n"):
        WaitFor.parse(text)


@pytest.mark.parametrize("text", ["x*", "^", "$", "login:|"])
def test_a_pattern_that_an_empty_console_matches_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="matches a console on which nothing has been written too"):
        WaitFor.parse(text)


# -- the console -------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


@pytest.fixture
def console(log: Path) -> Iterator[Console]:
    with contextlib.closing(Console(str(log))) as console:
        yield console


def test_a_line_ends_where_the_guest_s_terminal_has_ended_it(log: Path, console: Console) -> None:
    """A terminal writes CR LF for the end of a line, and CR CR LF where two are in a row."""
    console.read()
    assert console.text == b"", "there is no log yet"
    log.write_bytes(b"booting\r\nguest is up\r\r\nvm1 login: ")
    console.read()
    for text in ("^booting$", "^guest is up$", "login: $"):
        pattern = WaitFor.parse(text).pattern
        assert pattern
        assert pattern.search(console.text)


def test_what_is_written_before_and_after_the_log_was_removed_is_told(log: Path, console: Console) -> None:
    with log.open("wb", buffering=0) as virtlogd:
        virtlogd.write(b"booting\n")
        console.read()
        log.unlink()
        virtlogd.write(b"Kernel panic\n")
    console.read()
    assert console.last_lines() == ["booting", "Kernel panic"]


def test_a_log_that_was_moved_away_still_counts(log: Path, console: Console) -> None:
    for number in range(3):
        log.write_bytes(b"log %d\n" % number)
        console.read()
        log.rename(log.with_suffix(".log.0"))
    assert console.text == b"log 1\nlog 2\n"


def test_only_the_end_of_a_long_log_is_read(log: Path, console: Console) -> None:
    log.write_bytes(b"first\n" + bytes(2 * check.CONSOLE_BYTES) + b"\nlast\n")
    console.read()
    assert len(console.text) == check.CONSOLE_BYTES
    assert console.last_lines()[-1] == "last"


def test_the_last_lines_are_plain_and_short(log: Path, console: Console) -> None:
    log.write_bytes(b"x\n" * 99 + b"\x1b[0;1;31mFailed\x1b[0m to \x1b(Bmount\r\n\r\n  \n" + b"y" * 999)
    console.read()
    assert console.last_lines() == ["x"] * 4 + ["Failed to mount", "y" * check.LINE_MAX]


@pytest.mark.parametrize("make", [os.mkfifo, lambda log: log.symlink_to("/etc/passwd")], ids=["fifo", "link"])
def test_what_qemu_could_put_there_in_its_place_is_not_read(
    log: Path, console: Console, make: Callable[[Path], None]
) -> None:
    make(log)
    console.read()
    assert console.text == b""
