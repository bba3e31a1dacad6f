"""The hooks in contrib/hooks, and the one to begin with."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from snapmount.errors import StateError

from .host import HOOKS, Host, offered, taken

NAMES = sorted(path.name for path in HOOKS.iterdir())
CP = """
assert sys.argv[1:3] == ["--reflink=always", "--preserve=all"], sys.argv
os.execv("/bin/cp", ["cp", *sys.argv[3:]])  # without reflinks, which this file system may not have
"""


def test_all_are_there() -> None:
    assert {"example", "ontap", "rbd", "zfs"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_one_file_that_needs_python_alone(name: str) -> None:
    text = (HOOKS / name).read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names
    assert text.startswith("#!/usr/bin/python3 -I\n")  # nothing from beside it, or from the caller's environment
    assert (HOOKS / name).stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", [["check"], ["format", "--check", "--diff"]], ids=["check", "format"])
def test_ruff_finds_nothing(name: str, command: list[str]) -> None:
    ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", str(HOOKS / name)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_one_to_begin_with_is_short() -> None:
    tree = ast.parse((HOOKS / "example").read_text())
    lines = (HOOKS / "example").read_text().splitlines()[tree.body[1].lineno - 1 :]
    assert len([line for line in lines if line]) <= 20


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def test_the_one_to_begin_with_keeps_a_reflink_beside_the_image(host: Host, tmp_path: Path) -> None:
    origin = tmp_path / "vm1.raw"
    write(origin, "then")
    host.add_program("cp", CP)
    driver = host.install("example")
    assert await driver.why_not(str(origin)) is None
    clone, name = await taken(driver, str(origin))
    write(origin, "now")
    assert clone.frozen == (f"{origin}.{name}",)
    assert await trio.Path(clone.frozen[0]).read_text() == "then"
    assert await driver.why_lost(clone) is None
    await driver.remove(clone)
    await driver.remove(clone)
    assert await driver.why_lost(clone) == f"there is no {clone.frozen[0]}"
    assert await driver.why_not("/dev/null") == "is no file"


async def test_the_one_to_begin_with_fails_with_the_words_of_cp(host: Host, tmp_path: Path) -> None:
    origin = tmp_path / "vm1.raw"
    write(origin, "then")
    host.add_program("cp", "sys.exit('cp: failed to clone: Operation not supported')")
    driver = host.install("example")
    clone = (await offered(driver, str(origin))).clone
    with pytest.raises(StateError) as caught:
        await driver.create(clone)
    assert re.search(r"cp: failed to clone: Operation not supported", "\n".join(caught.value.evidence))
    await driver.remove(clone)
