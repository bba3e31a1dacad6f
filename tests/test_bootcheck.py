"""What tells that the guest of a scratch VM has booted."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapmount import bootcheck
from snapmount.bootcheck import WaitFor
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


def test_a_line_ends_where_the_guest_s_terminal_has_ended_it(tmp_path: Path) -> None:
    """A terminal writes CR LF for the end of a line, and CR CR LF where two are in a row."""
    log = tmp_path / "console.log"
    log.write_bytes(b"booting\r\nguest is up\r\r\nvm1 login: ")
    written = bootcheck.end_of(str(log))
    for text in ("^booting$", "^guest is up$", "login: $"):
        pattern = WaitFor.parse(text).pattern
        assert pattern
        assert pattern.search(written)
