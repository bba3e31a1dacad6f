"""Standard streams that are closed or cannot be written, and a Ctrl-C before the command has begun."""

from __future__ import annotations

import json as jsonlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..rig import servers, traces, vm
from ..rig.command import SNAPMOUNT, snapmount, snapmount_json

FULL = "standard output cannot be written (No space left on device)"
CLOSED = "standard output cannot be written (Bad file descriptor)"


def redirected(how: str, *words: str | Path) -> tuple[int, str, str]:
    """The exit code of a command whose streams a shell redirects so, and what it has said."""
    script = f'exec "$0" "$@" {how}'
    command = ["sh", "-c", script, SNAPMOUNT, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


# -- before the command has begun --------------------------------------------------------------------------------------


def test_a_ctrl_c_while_python_starts_ends_the_command_without_a_word(tmp_path: Path) -> None:
    """Python itself would call it a fatal error of its own, and exit with 1."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([SNAPMOUNT, "list"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_of_the_start_ends_the_command_without_a_word(number: int) -> None:
    for wait_s in [0.01 * step for step in range(12)]:
        with subprocess.Popen([SNAPMOUNT, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            _, complaint = process.communicate(timeout=60)
        assert (process.returncode in (0, -number), complaint) == (True, b""), (process.returncode, wait_s)


def test_a_caller_that_ignores_ctrl_c_has_it_ignored(tmp_path: Path) -> None:
    """As a shell does for what it runs in the background."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = ["sh", "-c", 'trap "" INT; exec "$0" --version', SNAPMOUNT]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_is_found_by_a_link_runs_with_the_python_beside_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(SNAPMOUNT)
    done = subprocess.run([tmp_path / "link", "--version"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "message"), [(">/dev/full", FULL), (">&-", CLOSED), (">&- <&-", CLOSED)])
def test_a_standard_output_that_cannot_be_written_is_told_with_an_exit_code_of_its_own(how: str, message: str) -> None:
    for words in (["--help"], ["--version"], ["boot", "--help"]):
        assert redirected(how, *words) == (10, "", f"snapmount: {message}\n")


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-", "<&- 2>&-"])
def test_a_standard_error_that_cannot_be_written_changes_nothing(how: str) -> None:
    assert redirected(how, "list", "nonsense") == (2, "", "")
    code, said, _ = redirected(how, "--version")
    assert (code, said[:10]) == (0, "snapmount ")


def test_no_file_takes_the_place_of_a_stream_that_is_closed() -> None:
    look = "import os; from snapmount.host import startup; startup.begin(); f = open('/proc/self/status')\n"
    look += "os._exit([os.readlink(f'/proc/self/fd/{n}') for n in range(3)] == ['/dev/null'] * 3 and f.fileno() > 2)"
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "-c", look])
    assert done.returncode == 1, "as True is"


def test_a_name_that_the_locale_lacks_is_told_in_other_words() -> None:
    tell = "from snapmount.host import startup; startup.begin(); print('caf\\xe9')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("caf\\xe9\n", "")


# -- results that nobody has been told ---------------------------------------------------------------------------------


@pytest.mark.vm
@pytest.mark.parametrize(("how", "what"), [(">/dev/full", FULL), ("<&- >&-", CLOSED)])
@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_a_snapshot_that_could_not_be_told_of_is_there_and_standard_error_says_so(
    writer: vm.VM, helper: vm.VM, mountpoint: Path, how: str, what: str, json: list[str]
) -> None:
    code, said, complaint = redirected(how, *json, writer.name, mountpoint)
    (shown,) = snapmount_json("list")
    own = shown["id"]
    see = f"  try: snapmount show {own}   (to end it: snapmount delete {own})\n"
    assert (code, said) == (10, "")
    assert complaint == f"snapmount: {what}; snapshot {own} of {writer.name} is there\n{see}"
    assert (mountpoint / "snapshot.json").exists()

    attached = f"snapmount: {what}; disks of snapshot {own} are attached to {helper.name}\n"
    attached += f"  try: snapmount detach {own} {helper.name}\n"
    assert redirected(how, "attach", *json, own, helper.name) == (10, "", attached)
    assert len(helper.targets()) == 3
    assert redirected(how, "list", *json) == (10, "", f"snapmount: {what}\n")

    code, _, complaint = redirected(how, "boot", *json, "--name", f"{vm.PREFIX}-scratch-full", own)
    assert (code, complaint) == (
        10,
        f"snapmount: {what}; scratch VM {vm.PREFIX}-scratch-full runs on snapshot {own}\n{see}",
    )
    assert redirected(how, "delete", "--force", own) == (10, "", f"snapmount: {what}\n")
    assert traces.found() == []


@pytest.mark.vm
def test_what_recover_could_not_print_is_told_on_standard_error(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    code, _, complaint = redirected(">/dev/full", "recover")
    first, second = complaint.splitlines()
    assert (code, first) == (10, f"snapmount: {FULL}")
    assert re.match(rf"snapmount: {writer.name}: re-attached to snapshot {taken['id']} ", second)
    snapmount("delete", writer.name)


@pytest.mark.vm
def test_with_all_streams_closed_a_snapshot_is_taken_and_served(writer: vm.VM, mountpoint: Path) -> None:
    assert redirected("<&- >&- 2>&-", writer.name, mountpoint)[0] == 10
    assert jsonlib.loads((mountpoint / "snapshot.json").read_text())["vm"]["name"] == writer.name
    assert redirected("<&- >&- 2>&-", "delete", writer.name)[0] == 10
    assert traces.found() == []


@pytest.mark.vm
def test_in_the_foreground_a_snapshot_that_could_not_be_told_of_is_served_all_the_same(
    writer: vm.VM, mountpoint: Path
) -> None:
    command = ["sh", "-c", 'exec "$0" "$@" >/dev/full', SNAPMOUNT, "--foreground", writer.name, str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert f"{FULL}; snapshot " in process.stderr.readline()
        assert (mountpoint / "snapshot.json").exists()
        process.send_signal(signal.SIGTERM)
        assert "try: snapmount show" in process.stderr.read()
    assert process.returncode == 10
    assert traces.found() == []
