"""Of a tgtd nothing is left, however it ends, and what goes wrong is told; tgtds of others are left alone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from snapmount.core.document import to_document
from snapmount.core.iscsi import Portal, Target
from snapmount.errors import MissingError, StateError, UnreachableError
from snapmount.publish import iscsi
from snapmount.publish.iscsi import tgt

from ....rig.libiscsi import free_port, logs_in, output
from ....rig.libvirtd import wait_for
from ....rig.tgtd import CREDENTIALS, LUNS, Published, ask, listens_at, published, refusal, tgtds, withdraw

pytestmark = pytest.mark.vm


# -- sessions ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def logged_in(view: Published) -> Iterator[subprocess.Popen[str]]:
    """An initiator that has read 64 KiB of the first LUN and stays."""
    process = subprocess.Popen(
        ["qemu-io", "-r", "-f", "raw", view.url()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write("read 0 65536\n")
        process.stdin.flush()
        for line in process.stdout:
            if "65536/65536" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def test_sessions_are_told_with_what_they_have_read(view: Published) -> None:
    assert view.sessions() == []
    with logged_in(view):
        [session] = view.sessions()
        assert session.address == "127.0.0.1"
        assert session.initiator.startswith("iqn.2008-11.org.linux-kvm")
        assert session.bytes_read is not None
        assert 65536 <= session.bytes_read < 2 * 65536
    wait_for(lambda: view.sessions() == [], "the initiator's session has ended")


def test_the_sessions_of_a_tgtd_that_is_gone_cannot_be_told(view: Published) -> None:
    view.withdraw()
    with pytest.raises(UnreachableError):
        view.sessions()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_withdrawing_ends_live_sessions_and_may_be_repeated(view: Published) -> None:
    with logged_in(view):
        view.withdraw()
        assert tgtds(view.directory) == []
        assert not listens_at(view.target.portals[0].port)
    view.withdraw()
    assert not logs_in(view.url())


POINTS: dict[str, Callable[[Path, Target], bool]] = {
    "at once": lambda directory, target: True,
    "tgtd runs": lambda directory, target: bool(tgtds(directory)),
    "tgtd answers": lambda directory, target: (directory / "tgtd.0").exists(),
    "the first LUN is being made": lambda directory, target: (directory / "tgtd-lun1").is_symlink(),
    "the last LUN is being made": lambda directory, target: (directory / "tgtd-lun2").is_symlink(),
    "it listens": lambda directory, target: listens_at(target.portals[0].port),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_helper_that_is_killed_leaves_nothing_that_withdrawing_does_not_find(
    directory: Path, target: Target, files: list[str], point: str
) -> None:
    request = {"do": "publish", "backend": "tgt", "directory": str(directory), "target": to_document(target)}
    helper = subprocess.Popen(
        [sys.executable, "-P", "-m", "snapmount.publish.iscsi.control"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert helper.stdin
    helper.stdin.write(json.dumps(request | {"files": files, "credentials": to_document(CREDENTIALS)}).encode())
    helper.stdin.close()
    wait_for(lambda: POINTS[point](directory, target), point)
    helper.kill()
    helper.wait()
    assert helper.stdout
    helper.stdout.close()
    withdraw(directory, target)
    assert tgtds(directory) == []
    assert list(directory.iterdir()) == []
    assert not listens_at(target.portals[0].port)


def test_publishing_that_is_cancelled_is_undone_by_withdrawing(
    directory: Path, target: Target, files: list[str]
) -> None:
    async def cancelled_when_tgtd_runs() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(iscsi.publish, "tgt", directory, target, files, CREDENTIALS)
            while not (directory / "tgtd.log").exists():
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        await iscsi.withdraw("tgt", directory, target)

    trio.run(cancelled_when_tgtd_runs)
    assert tgtds(directory) == []


def test_a_tgtd_of_others_is_left_alone(view: Published, tmp_path: Path) -> None:
    portal = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"TGT_IPC_SOCKET": f"{tmp_path}/tgtd"}
    other = subprocess.Popen(
        ["tgtd", "-f", "-C", "0", "--iscsi", f"portal={portal}"], env=environment, stderr=subprocess.DEVNULL
    )

    def tgtadm(*words: str) -> str:
        command = ["tgtadm", "-C", "0", "--lld", "iscsi", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        wait_for(lambda: Path(f"{tmp_path}/tgtd.0").exists(), "the other tgtd answers")
        tgtadm("--op", "new", "--mode", "target", "--tid", "1", "-T", "iqn.2001-04.com.example:other")
        before = tgtadm("--op", "show", "--mode", "target") + tgtadm("--op", "show", "--mode", "portal")
        assert view.target.iqn not in before
        view.withdraw()
        assert tgtadm("--op", "show", "--mode", "target") + tgtadm("--op", "show", "--mode", "portal") == before
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_host_without_tgtd_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tgt, "_SYSTEM_PATH", str(tmp_path))
    assert tgt.missing() == ("tgtd is not installed", "apt-get install tgt")
    target = Target("iqn.2024-08.internal.snapmount:x", (Portal("127.0.0.1"),), LUNS, ())
    with pytest.raises(MissingError):
        tgt.publish(tmp_path, target, [], CREDENTIALS)


def test_this_host_can_use_tgt() -> None:
    assert ask(iscsi.missing, "tgt") is None
    assert ask(iscsi.choose, "tgt") == "tgt"


def test_a_tgtd_that_dies_while_it_starts_is_told_with_its_last_words(
    directory: Path, target: Target, files: list[str]
) -> None:
    (directory / "tgtd.0.lock").mkdir()
    error = refusal(StateError, directory, target, files, CREDENTIALS)
    assert "lock file" in error.message
    (directory / "tgtd.0.lock").rmdir()
    withdraw(directory, target)


def test_a_path_that_is_too_long_for_a_socket_is_told(directory: Path, target: Target, files: list[str]) -> None:
    long = directory / ("d" * 100)
    long.mkdir()
    assert "too long" in refusal(StateError, long, target, files, CREDENTIALS).message
    long.rmdir()


def test_a_missing_file_is_told(directory: Path, target: Target, files: list[str]) -> None:
    error = refusal(StateError, directory, target, [files[0], "/nonexistent/vdb.raw"], CREDENTIALS)
    assert "No such file" in error.message
    withdraw(directory, target)


def test_few_descriptors_are_enough(directory: Path, target: Target, files: list[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with published(directory, target, files) as view:
            output("qemu-img", "compare", "-f", "raw", "-F", "raw", files[0], view.url())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
