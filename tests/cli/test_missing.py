"""What lists, shows and ends snapshots does so on a host that has lost the modules which take them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapmount.core.lifecycle import State
from snapmount.errors import InterruptedByUserError, MissingError
from snapmount.host.processes import Process
from snapmount.records.store import Store

from ..rig import traces, vm
from ..rig.command import snapmount
from ..rig.records import ID, OwnStore, a_record

HEAVY = ("libvirt", "nbd", "pyfuse3", "rtslib_fb", "trio")

# The command, without those modules, and with the records of the test; then it tells what it has loaded.
COMMAND = """
import json, os, sys
from pathlib import Path

missing, directory, *argv = sys.argv[1:]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing.split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
from snapmount.cli import commands
from snapmount.records.store import Store

if directory:
    Store.of_user = classmethod(lambda cls, check: cls(Path(directory), check))
code = commands.main(argv)
if not missing:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.stdout.flush()
os._exit(code)
"""


def command(*argv: str, directory: Path | str = "", missing: tuple[str, ...] = HEAVY) -> list[str]:
    return [sys.executable, "-c", COMMAND, ",".join(missing), str(directory), *argv]


def run(*argv: str, store: Store, missing: tuple[str, ...] = HEAVY) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*argv, directory=store.directory, missing=missing), capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def active(store: OwnStore) -> OwnStore:
    """A store with a snapshot that a process serves: this one."""
    store.lease(a_record()).update(state=State.ACTIVE)
    return store


@pytest.fixture
def dead(active: OwnStore) -> OwnStore:
    """A store with a snapshot whose server is gone."""
    active.leases.pop().release()
    return active


def test_the_modules_that_are_said_to_be_missing_are(active: OwnStore) -> None:
    """Else the tests below would prove nothing."""
    for module in HEAVY:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.partition("from snapmount.cli")[0] + f"import {module}", module, ""],
            capture_output=True,
            text=True,
        )
        assert f"ModuleNotFoundError: No module named '{module}'" in done.stderr


def test_snapshots_are_listed_and_shown_without_what_takes_them(active: OwnStore) -> None:
    for as_json in (["--json"], []):
        for verb in (["list"], ["show", ID]):
            done = run(*verb, *as_json, store=active)
            assert (done.returncode, done.stderr) == (0, "")
            assert ID in done.stdout
            assert State.ACTIVE.value in done.stdout


def test_what_lists_snapshots_loads_little(active: OwnStore) -> None:
    """So that it takes little time."""
    loaded = set(json.loads(run("list", "--json", store=active, missing=()).stderr))
    assert {"snapmount.cli.verbs.list", "snapmount.records.record"} <= loaded
    assert loaded & {*HEAVY, "asyncio", "rich.console", "setproctitle", "socket", "subprocess", "xml"} == set()
    assert set(json.loads(run("list", store=active, missing=()).stderr)) == loaded, "also for its table"


def test_a_dead_snapshot_is_shown_as_it_is_where_it_cannot_be_recovered(dead: OwnStore) -> None:
    for module in HEAVY[:3]:
        done = run("show", "--json", ID, store=dead, missing=(module,))
        assert done.returncode == 0
        assert json.loads(done.stdout)["state"] == State.DEAD.value
        assert module in done.stderr
        assert "is missing" in done.stderr


def test_what_must_be_undone_here_is_left_as_it_is_and_the_missing_module_is_named(dead: OwnStore) -> None:
    for module in ("libvirt", "trio"):
        done = run("delete", "--json", ID, store=dead, missing=(module,))
        assert done.returncode == MissingError.exit_code
        assert [each["deleted"] for each in json.loads(done.stdout)] == [False]
        assert module in done.stderr
        assert "is missing" in done.stderr
    assert dead.load(ID) is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_a_server_to_end_can_be_interrupted(store: OwnStore, number: signal.Signals) -> None:
    telling = (
        "import signal; signal.signal(15, lambda *_: print(flush=True)); print(flush=True)\nwhile True: signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", telling], stdout=subprocess.PIPE) as server:
        assert server.stdout
        server.stdout.readline()
        store.lease(a_record()).update(state=State.ACTIVE, server=Process.of_pid(server.pid))
        deleting = command("delete", ID, directory=store.directory)
        with subprocess.Popen(deleting, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            server.stdout.readline()  # it has been asked to end
            process.send_signal(number)
            said, complaint = process.communicate(timeout=60)
        server.kill()
    assert (process.returncode, said) == (InterruptedByUserError.exit_code, "")
    assert f"interrupted before snapshot {ID} had ended" in complaint
    assert store.load(ID) is not None


@pytest.mark.vm
def test_a_snapshot_is_ended_without_what_has_taken_it(writer: vm.VM, mountpoint: Path) -> None:
    snapmount(writer.name, mountpoint)
    done = subprocess.run(command("delete", writer.name), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is ended" in done.stdout
    assert traces.found() == []
    assert not writer.has_job()
