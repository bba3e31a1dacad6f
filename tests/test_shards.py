"""Shards: the tests run as if on several hosts, and the outcome is told as if they had run on one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .rig import shards

MODULES = ("tests/core/test_names.py", "tests/core/test_units.py")


def test_the_modules_that_come_first_exist() -> None:
    assert [module for module in shards.LONGEST if not (shards.TREE / module).is_file()] == []


@pytest.mark.vm
def test_each_module_runs_once_and_the_shards_leave_nothing() -> None:
    why = shards.lacking()
    if why:
        pytest.skip(why)
    before = left()
    alone, divided = outcome(), outcome("--shards", "2")
    assert divided == alone
    assert left() == before


def outcome(*options: str) -> str:
    """How many tests have passed, as pytest's last line says."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *MODULES]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=shards.TREE, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    last = re.fullmatch(r"=+ (\d+ passed) in .*", done.stdout.splitlines()[-1])
    assert last, done.stdout
    return last[1]


def left() -> list[Path]:
    return list(Path("/var/tmp").glob(f"{shards.PREFIX}*"))
