"""README and man page tell of every option, verb, state and exit code that there is."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

from snapmount import __version__
from snapmount.cli import arguments
from snapmount.cli.arguments import grammar
from snapmount.core.lifecycle import State

ROOT = Path(__file__).parents[1]
MAN = (ROOT / "contrib" / "snapmount.1").read_text().replace("\\-", "-")


def verbs() -> dict[str, argparse.ArgumentParser]:
    return dict(grammar.parser()[1])


def test_the_man_page_tells_of_every_option() -> None:
    options = {option for verb in verbs().values() for action in verb._actions for option in action.option_strings}
    assert {option for option in options if option not in MAN} == set()


def test_the_man_page_names_no_option_that_there_is_not() -> None:
    options = {option for verb in verbs().values() for action in verb._actions for option in action.option_strings}
    section = MAN[MAN.index(".SH OPTIONS") : MAN.index('.SH "THE MOUNT"')]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section))
    assert named - options == {"--version"}


def test_readme_and_man_page_tell_of_every_verb() -> None:
    readme = (ROOT / "README.rst").read_text()
    for verb in verbs():
        assert re.search(rf"snapmount \[?{verb}\b", readme)
        assert re.search(rf"\b{verb}\b", MAN)


def test_the_man_page_tells_of_every_state_and_exit_code() -> None:
    for state in State:
        assert f"\n.B {state.value}\n" in MAN
    codes = re.findall(r"^  (\d+)  ", arguments.EXIT_CODES, re.MULTILINE)
    section = MAN[MAN.index('.SH "EXIT STATUS"') :]
    for code in codes:
        assert f"\n.B {code}\n" in section


def test_the_man_page_is_of_this_version_and_well_formed() -> None:
    assert f'"snapmount {__version__}"' in MAN
    page = ROOT / "contrib" / "snapmount.1"
    done = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr) == (0, "")
