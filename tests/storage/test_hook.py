"""The driver that has a hook take the snapshots: how hooks are run, what they are told, what of their errors."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snapmount.core.document import DocumentError, to_document
from snapmount.core.extents import Extent
from snapmount.core.user import User
from snapmount.errors import LeftoverError, SpaceError, StateError, UnreachableError
from snapmount.host.processes import Process
from snapmount.storage import hookprogram, shapes
from snapmount.storage.driver import Clone, Driver, Offer, Room, Task
from snapmount.storage.hook import HookDriver
from snapmount.storage.shapes import HookKept

READER = User(64055, 108, (108,))
ORIGIN = "/srv/snapmount-test/vm1.raw"
DEADLINE_S = 30.0

# Answers as the test says, and writes down what it was asked.
RECORDING = """
verb=$1
cat > "$0.$verb"
cat "$0.$verb.answer"
"""


def written(path: Path, script: str, mode: int = 0o755) -> str:
    """A hook that the shell runs."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return str(path)


def answering(path: Path, answers: Mapping[str, object]) -> str:
    for verb, answer in answers.items():
        Path(f"{path}.{verb}.answer").write_text(json.dumps(answer))
    return written(path, RECORDING)


def asked(path: str, verb: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(f"{path}.{verb}").read_text())
    return read


def said(path: str) -> str:
    """What a hook has written to that file."""
    return Path(path).read_text()


def was_made(path: str) -> bool:
    return Path(path).exists()


def clone_of(path: str, **state: object) -> Clone:
    return Clone("hook", (ORIGIN,), (), to_document(HookKept(path, "3f2a91bc", "snapmount-3f2a91bc-0", READER, state)))


async def offered(driver: Driver, *origins: str) -> list[Offer]:
    return list(await driver.plan(Task("3f2a91bc", origins, READER)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hook"


# -- what is said ------------------------------------------------------------------------------------------------------


async def test_the_life_of_a_snapshot_is_a_question_for_each_step(path: Path) -> None:
    room = {"place": "the pool", "free_bytes": 5, "total_bytes": 9}
    answers = {
        "plan": {"pause_s": 0.25, "remedy": "a faster filer", "guest_pays": "little", "state": {"dataset": "tank/vm1"}},
        "take": {},
        "status": {"frozen": "/dev/zd16", "rooms": [room]},
        "changed": {"extents": [{"start": 0, "length": 4096}]},
        "delete": {},
    }
    program = answering(path, answers)
    driver = HookDriver(program)
    assert await driver.why_not(ORIGIN) is None
    (offer,) = await offered(driver, ORIGIN)
    assert (offer.pause_s, offer.remedy, offer.guest_pays) == (0.25, "a faster filer", "little")
    assert (offer.is_concurrent, offer.gives_url) == (True, False)
    assert asked(program, "plan") == {
        "version": 1,
        "verb": "plan",
        "deadline_s": 10.0,
        "origin": ORIGIN,
        "names": [ORIGIN],
    }

    clone = Clone(**json.loads(json.dumps(to_document(offer.clone))))  # as a record has it
    clone = Clone(clone.driver, tuple(clone.origins), tuple(clone.frozen), clone.kept)
    await driver.prepare(clone)
    await driver.create(clone)
    question = asked(program, "take")
    name = question["name"]
    assert name.startswith("snapmount-3f2a91bc-")
    common = {
        "version": 1,
        "origin": ORIGIN,
        "snapshot": "3f2a91bc",
        "name": name,
        "reader": {"uid": 64055, "gid": 108, "groups": [108]},
        "state": {"dataset": "tank/vm1"},
    }
    assert question == common | {"verb": "take", "deadline_s": 10.0}

    assert (await driver.activate(clone)).of(ORIGIN) == "/dev/zd16"
    assert asked(program, "status") == common | {"verb": "status", "deadline_s": 20.0}
    assert await driver.why_lost(clone) is None
    assert list(await driver.rooms(clone)) == [Room("the pool", 5, 9)]

    older = clone_of(program, was="so")
    assert list(await driver.changed(older, clone, ORIGIN)) == [Extent(0, 4096, 0)]
    before = {"snapshot": "3f2a91bc", "name": "snapmount-3f2a91bc-0", "state": {"was": "so"}}
    assert asked(program, "changed") == common | {"verb": "changed", "deadline_s": 600.0, "older": before}

    await driver.remove(clone)
    assert asked(program, "delete") == common | {"verb": "delete", "deadline_s": 30.0}


async def test_each_origin_is_a_clone_of_its_own_with_a_name_of_its_own(path: Path) -> None:
    driver = HookDriver(answering(path, {"plan": {"pause_s": 0}}))
    offers = await offered(driver, "/srv/a", "/srv/b")
    assert [offer.clone.origins for offer in offers] == [("/srv/a",), ("/srv/b",)]
    assert len({offer.clone.kept["name"] for offer in offers}) == 2


async def test_a_url_is_handed_out_in_place_of_a_path(path: Path) -> None:
    program = answering(path, {"status": {"frozen": "https://filer/api/1"}})
    assert (await HookDriver(program).activate(clone_of(program))).frozen == ("https://filer/api/1",)


async def test_what_a_hook_cannot_take_is_told_in_its_words(path: Path) -> None:
    program = answering(path, {"plan": {"why_not": "lies in no dataset"}})
    driver = HookDriver(program)
    assert await driver.why_not(ORIGIN) == "lies in no dataset"
    with pytest.raises(StateError, match=f"{ORIGIN}: {program}: lies in no dataset"):
        await offered(driver, ORIGIN)


async def test_a_lost_snapshot_is_told_from_a_hook_that_fails(path: Path) -> None:
    program = answering(path, {"status": {"lost": "somebody has destroyed it"}})
    driver = HookDriver()
    assert await driver.why_lost(clone_of(program)) == "somebody has destroyed it"
    with pytest.raises(StateError, match="somebody has destroyed it"):
        await driver.activate(clone_of(program))
    failing = written(path, "exit 3")
    for function, kind in (
        (driver.why_lost, UnreachableError),
        (driver.activate, UnreachableError),
        (driver.rooms, SpaceError),
    ):
        with pytest.raises(kind, match=f"the hook {failing} status has failed \\(exit status 3\\)"):
            await function(clone_of(failing))


async def test_a_status_holds_as_long_as_the_hook_says(path: Path) -> None:
    answer = {"frozen": "/dev/zd16", "rooms": [{"place": "p", "free_bytes": 1, "total_bytes": 2}], "holds_s": 60}
    program = answering(path, {"status": answer, "delete": {}})
    driver, clone = HookDriver(), clone_of(program)
    await driver.activate(clone)
    answering(path, {"status": {"lost": "it has gone", "holds_s": 0}})
    assert list(await driver.rooms(clone)) == [Room("p", 1, 2)]
    assert await driver.why_lost(clone) is None
    with pytest.raises(StateError, match="it has gone"):
        await driver.activate(clone)
    assert await driver.why_lost(clone) == "it has gone"
    answering(path, {"status": answer})
    assert await driver.why_lost(clone) is None
    answering(path, {"status": {"lost": "it has gone"}})
    await driver.remove(clone)
    assert await driver.why_lost(clone) == "it has gone"


async def test_what_has_changed_may_be_untold(path: Path) -> None:
    program = answering(path, {"changed": {"why_not": "the older one was rolled back"}})
    with pytest.raises(StateError, match=f"{program}: {ORIGIN}: the older one was rolled back"):
        await HookDriver().changed(clone_of(program), clone_of(program), ORIGIN)


# -- which hook --------------------------------------------------------------------------------------------------------


async def test_the_settings_say_which_hook_serves_an_origin(path: Path, tmp_path: Path) -> None:
    program = answering(path, {"plan": {"pause_s": 0}})
    file = tmp_path / "storage.toml"
    file.write_text(f'[hooks]\n"/srv/snapmount-test" = "{program}"\n')
    file.chmod(0o644)
    driver = HookDriver(settings_path=str(file))
    assert await driver.why_not(ORIGIN) is None
    (offer,) = await offered(driver, ORIGIN)
    assert offer.clone.kept["hook"] == program
    assert await driver.why_not("/home/x") == f"none is set for it in {file}"
    with pytest.raises(StateError, match=f"/home/x: no hook is set for it in {file}"):
        await offered(driver, "/home/x")
    file.write_text("hooks = 1")
    assert await driver.why_not(ORIGIN) == f"{file} cannot be used: hooks is 1, not an object"


async def test_a_hook_that_others_can_write_is_not_run(path: Path) -> None:
    program = written(path, f"touch {path}.ran; echo '{{}}'", 0o757)
    with pytest.raises(
        StateError, match=r"is not run, since it can be written by others than its owner \(mode 0757\)"
    ) as caught:
        await HookDriver().create(clone_of(program))
    assert caught.value.remedy == f"sudo chown root: {program} && sudo chmod go-w {program}"
    assert not was_made(f"{path}.ran")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.chmod(0o644), "is not executable"),
        (lambda path: path.unlink(), "cannot be run: No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), "is not run, since it is no regular file"),
        (lambda path: path.write_text("#!/nowhere/sh\n"), "cannot be run: No such file or directory"),
        (lambda path: path.write_bytes(b"\x7fELF"), "cannot be run: Exec format error"),
    ],
)
async def test_a_hook_that_cannot_be_run_says_why(path: Path, make: Any, complaint: str) -> None:
    program = written(path, "echo '{}'")
    make(path)
    with pytest.raises(StateError) as caught:
        await HookDriver().create(clone_of(program))
    assert caught.value.message == f"the hook {program} take {complaint}"


async def test_a_hook_is_named_by_an_absolute_path() -> None:
    assert await HookDriver("zfs").why_not(ORIGIN) == "the hook zfs plan is no absolute path"


# -- how it is run -----------------------------------------------------------------------------------------------------


async def test_a_hook_has_nothing_of_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/tmp")
    script = f"""
        env | sort > {path}.env
        pwd > {path}.cwd
        ls /proc/$$/fd > {path}.fd
        cut -d' ' -f1,5,6 /proc/$$/stat > {path}.ids
        echo '{{}}'
    """
    ours = fcntl.fcntl(2, fcntl.F_DUPFD, 100)  # which a program would inherit
    try:
        await HookDriver().create(clone_of(written(path, script)))
    finally:
        os.close(ours)
    environment = dict(line.split("=", 1) for line in said(f"{path}.env").splitlines())
    assert environment.pop("PWD") == "/"  # the shell's own
    environment.pop("_", None)
    environment.pop("SHLVL", None)
    environment.pop("OLDPWD", None)
    assert environment == hookprogram.ENVIRONMENT | {hookprogram.TAKES: "snapmount-3f2a91bc-0"}
    assert said(f"{path}.cwd") == "/\n"
    assert str(ours) not in said(f"{path}.fd").split()
    pid, group, session = said(f"{path}.ids").split()
    assert pid == group == session


async def test_a_hook_need_not_read_its_question(path: Path) -> None:
    program = written(path, "echo '{}'")
    await HookDriver().create(clone_of(program, much="x" * 1_000_000))


async def test_what_a_hook_leaves_running_is_not_waited_for(path: Path) -> None:
    program = written(path, f"sleep 1000 & echo $! > {path}.pid; echo '{{}}'")
    try:
        with trio.fail_after(DEADLINE_S):
            await HookDriver().create(clone_of(program))
    finally:
        os.kill(int(said(f"{path}.pid")), signal.SIGKILL)


async def test_stderr_is_logged_by_lines_and_told_if_it_fails(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script = "seq 1 12 >&2; printf 'the filer \\033[1m refuses' >&2; exit 4"
    program = written(path, script)
    with pytest.raises(StateError) as caught:
        await HookDriver().create(clone_of(program))
    last = "the filer \\x1b[1m refuses"
    assert caught.value.message == f"the hook {program} take has failed (exit status 4): {last}"
    assert caught.value.evidence == (*map(str, range(4, 13)), last)
    logged = [record.getMessage() for record in caplog.records if record.name == hookprogram.__name__]
    assert logged == [f"{program} take: {line}" for line in (*range(1, 13), last)]


async def test_a_flood_on_stderr_is_cut(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    program = written(path, "seq 1 5000 >&2; head -c 3000000 /dev/zero | tr '\\0' x >&2; echo '{}'")
    await HookDriver().create(clone_of(program))
    logged = [record.getMessage() for record in caplog.records if record.name == hookprogram.__name__]
    assert len(logged) == 1001
    assert logged[-1] == f"{program} take says more than 1000 lines; the others are not logged"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("kill -TERM $$", "take has failed (Terminated)"),
        ("exit 1", "take has failed (exit status 1)"),
        ("yes", "take has answered more than 1048576 bytes"),
        ("true", "take has answered cannot be used: it is empty"),
        ("echo ok", 'take has answered cannot be used: it is no JSON: "ok"'),
        ("echo '{\"frozen\": 1}'", "take has answered cannot be used: frozen is not known"),
    ],
)
async def test_what_is_no_answer_is_an_error_with_hook_and_verb(path: Path, script: str, complaint: str) -> None:
    program = written(path, script)
    with pytest.raises(StateError) as caught:
        await HookDriver().create(clone_of(program))
    assert caught.value.message in (f"the hook {program} {complaint}", f"what the hook {program} {complaint}")


# -- how it ends -------------------------------------------------------------------------------------------------------


async def test_at_its_deadline_a_hook_is_killed_with_all_that_it_has_started(path: Path, mock_clock: MockClock) -> None:
    script = f"echo busy >&2; sleep 1000 & echo $! > {path}.pid; touch {path}.begun; wait"
    program = written(path, script)

    async def removed() -> None:
        with pytest.raises(LeftoverError) as caught:
            await HookDriver().remove(clone_of(program))
        assert caught.value.message == f"the hook {program} delete has not ended within 30 s, and is killed: busy"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(removed)
        await there(f"{path}.begun")
        mock_clock.jump(30.0)
    await gone(int(said(f"{path}.pid")))


async def gone(pid: int) -> None:
    """Return when that process has ended; what reaps it may take its time."""
    with contextlib.suppress(OSError):
        while Process.of_pid(pid).runs():
            await trio.to_thread.run_sync(time.sleep, 0.01)


async def there(path: str) -> None:
    while not was_made(path):
        await trio.to_thread.run_sync(time.sleep, 0.01)


async def test_a_take_is_waited_for_when_it_is_cancelled(path: Path) -> None:
    os.mkfifo(f"{path}.go")
    program = written(path, f"touch {path}.begun; read line < {path}.go; touch {path}.taken; echo '{{}}'")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HookDriver().create, clone_of(program))
        await there(f"{path}.begun")
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(Path(f"{path}.go").write_text, "\n")
    assert was_made(f"{path}.taken")


async def test_a_question_that_makes_nothing_is_cut_short_when_it_is_cancelled(path: Path) -> None:
    program = written(path, f"echo $$ > {path}.pid; touch {path}.begun; exec sleep 1000")
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HookDriver().why_lost, clone_of(program))
            await there(f"{path}.begun")
            nursery.cancel_scope.cancel()
    await gone(int(said(f"{path}.pid")))


def started(command: list[str], stdin: str = "", env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)
    assert process.stdin
    with process.stdin as stream:
        stream.write(stdin.encode())
    return process


TAKING = """
import json, sys, trio
from snapmount.storage.driver import Clone
from snapmount.storage.hook import HookDriver
document = json.load(sys.stdin)
trio.run(HookDriver().create, Clone(document["driver"], tuple(document["origins"]), (), document["kept"]))
"""


async def test_a_take_that_outlives_a_killed_snapmount_is_ended_before_it_is_undone(path: Path) -> None:
    script = f"""
        [ $1 = take ] || {{ touch {path}.deleted; echo '{{}}'; exit; }}
        trap '' TERM
        sleep 1000 &
        echo $$ $! > {path}.pids; touch {path}.begun
        wait; touch {path}.taken
    """
    clone = clone_of(written(path, script))
    taker = started([sys.executable, "-c", TAKING], stdin=json.dumps(to_document(clone)))
    await there(f"{path}.begun")
    taker.kill()
    taker.wait()
    pids = [int(pid) for pid in said(f"{path}.pids").split()]
    assert all(Process.of_pid(pid).runs() for pid in pids)
    await HookDriver().remove(clone)
    assert was_made(f"{path}.deleted")
    assert not was_made(f"{path}.taken")
    for pid in pids:
        await gone(pid)


async def test_the_takes_of_other_snapshots_are_let_be(path: Path) -> None:
    environment = hookprogram.ENVIRONMENT | {hookprogram.TAKES: "snapmount-3f2a91bc-00"}
    other = started(["sleep", "1000"], env=environment)
    try:
        assert hookprogram.end_left("snapmount-3f2a91bc-0")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_what_cannot_be_deleted_is_left_over_and_can_be_deleted_by_hand(path: Path) -> None:
    program = written(path, f"cat > {path}.asked; echo '{{}}'; exit $(cat {path}.status)")
    await trio.Path(f"{path}.status").write_text("1")
    driver, clone = HookDriver(), clone_of(program, quoted='a\'b "c" $d\n\u00e9')
    with pytest.raises(LeftoverError, match=r"delete has failed \(exit status 1\)"):
        await driver.remove(clone)
    question = json.loads(said(f"{path}.asked"))
    await trio.Path(f"{path}.status").write_text("0")
    (command,) = driver.by_hand(clone)
    await trio.run_process(["sh", "-ec", f"rm {path}.asked; {command}"], capture_stdout=True)
    assert json.loads(said(f"{path}.asked")) == question


@pytest.mark.parametrize(
    "kept", [{}, {"hook": 1}, {"hook": "/x", "snapshot": "", "name": "", "reader": {}, "state": {}}]
)
def test_a_record_with_anything_else_in_it_is_an_error(kept: dict[str, object]) -> None:
    with pytest.raises(DocumentError, match="kept of the hook clone"):
        shapes.check(Clone("hook", (ORIGIN,), (), kept))
