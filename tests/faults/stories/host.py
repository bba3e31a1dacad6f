"""The host is cut off from power, has no room for records, or has its clock stepped back."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ...rig import filesystems, power, traces
from ...rig.command import snapmount, snapmount_json
from ..scene import ANY, STORAGE, Scene
from .fault import PAUSE_MS, TAKE_MS, Fault

RUNTIME_KIB = 96
LEAST_KIB = 40  # for the record, the VM's definition, the log
FAKETIME = "*/faketime/libfaketimeMT.so.1"  # below /usr/lib


# -- power -------------------------------------------------------------------------------------------------------------


def the_power_fails(scene: Scene) -> None:
    scene.take()
    if scene.either():
        snapmount("boot", *(["--keep"] if scene.either() else []), scene.guest.name)
    time.sleep(scene.a_moment(PAUSE_MS))
    power.cut(scene.guest, keeps_runtime=scene.either())
    scene.nobody_reads()
    _recover_removes_all()


def the_power_fails_and_what_lasts_is_re_attached(scene: Scene) -> None:
    scene.take()
    if scene.either():
        snapmount("boot", *(["--keep"] if scene.either() else []), scene.guest.name)
    time.sleep(scene.a_moment(PAUSE_MS))
    power.cut(scene.guest, keeps_runtime=scene.either())
    scene.nobody_reads()
    done = snapmount_json("recover")
    assert [each["id"] for each in done["reattached"]] == [scene.taken["id"]]
    scene.reads_go_on()
    scene.delete()


def the_power_fails_while_clones_are_made(scene: Scene) -> None:
    """If it fails after that, they are there."""
    _cut_while_taking(scene)
    for each in snapmount_json("recover")["reattached"]:
        snapmount("delete", each["id"])


def the_power_fails_while_a_snapshot_is_taken(scene: Scene) -> None:
    _cut_while_taking(scene)
    _recover_removes_all()


def _cut_while_taking(scene: Scene) -> None:
    taking = scene.start(*scene.take_words())
    time.sleep(scene.a_moment(TAKE_MS))
    taken_by = [*power.children(taking.pid), taking.pid]
    power.cut(scene.guest, keeps_runtime=scene.either(), processes=taken_by)
    scene.ended(taking)


def _recover_removes_all() -> None:
    done = snapmount_json("recover")
    assert done["reattached"] == []
    assert all(orphan["removed"] for orphan in done["orphans"])
    assert snapmount("recover").stdout == "nothing to recover\n"


# -- the runtime directory ---------------------------------------------------------------------------------------------


def the_runtime_directory_is_full_when_a_snapshot_is_taken(scene: Scene) -> None:
    with _small_runtime():
        with filesystems.filled(traces.RUNTIME, leave=scene.chance.randrange(0, LEAST_KIB << 10, 4096)):
            taking = scene.start(*scene.take_words())
            code, _, complaint = scene.ended(taking)
            assert code == 0 or os.strerror(errno.ENOSPC) in complaint, (code, complaint)
            if code == 0:
                scene.delete()
        scene.take()
        scene.delete()


def the_runtime_directory_fills_up(scene: Scene) -> None:
    with _small_runtime():
        scene.take()
        with filesystems.filled(traces.RUNTIME, leave=0):
            time.sleep(scene.a_moment(PAUSE_MS))
            scene.reads_go_on()
            if scene.either():
                scene.kill_server()
                assert os.strerror(errno.ENOSPC) in snapmount("recover", check=False).stderr
                scene.nobody_reads_the_dead_view()
            scene.delete()


def the_runtime_directory_becomes_read_only(scene: Scene) -> None:
    """What cannot be written down is not done, or is done again when it can be."""
    scene.views = ("files",)  # a tgtd has its log open, and would keep the file system from becoming read-only
    with _small_runtime():
        scene.take()
        scene.kill_server_and_standby()  # who opens the log too
        with filesystems.read_only(traces.RUNTIME):
            words = scene.chance.choice(
                (["recover"], ["delete", "--force", scene.guest.name], ["boot", scene.guest.name])
            )
            done = snapmount(*words, check=False)
            assert done.returncode, done.stdout
            assert os.strerror(errno.EROFS) in done.stderr
        scene.nobody_reads_the_dead_view()
        scene.delete()


@contextlib.contextmanager
def _small_runtime() -> Iterator[None]:
    """The runtime directory lies on a small file system; nothing is left in it."""
    with filesystems.small_at(traces.RUNTIME, RUNTIME_KIB):
        try:
            yield
            assert os.listdir(traces.RUNTIME) == []
        finally:
            for left in snapmount_json("list"):  # else nothing would tell of it any more
                snapmount("delete", "--force", left["id"], check=False)


# -- the clock ---------------------------------------------------------------------------------------------------------


def the_clock_is_stepped_back(scene: Scene) -> None:
    """For all processes of snapmount, also its server; the rest of the host does not see it."""
    scene.views = ("files",)  # Python's sleep, with which tgtd is waited for, fails under libfaketime 0.9.10
    stepped = scene.stage.small.parent / "clock"
    stepped.write_text("+0")
    clock = {
        "LD_PRELOAD": str(next(Path("/usr/lib").glob(FAKETIME))),
        "FAKETIME_TIMESTAMP_FILE": str(stepped),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    try:
        scene.take("--expire", "2h", env=os.environ | clock)
        stepped.write_text("-1d")
        shown = snapmount("show", scene.guest.name, env=os.environ | clock).stdout
        assert ", 0s ago" in shown
        assert "in 1h 59m" in shown
        scene.reads_go_on()
        assert scene.state() == "active"
        scene.delete()
    finally:
        stepped.unlink()


FAULTS = (
    Fault(the_power_fails, spares_guest=False),
    Fault(the_power_fails_while_a_snapshot_is_taken, spares_guest=False),
    Fault(the_power_fails_and_what_lasts_is_re_attached, spares_guest=False, sources=STORAGE),
    Fault(the_power_fails_while_clones_are_made, spares_guest=False, sources=STORAGE),
    Fault(the_runtime_directory_is_full_when_a_snapshot_is_taken),
    Fault(the_runtime_directory_fills_up),
    Fault(the_runtime_directory_becomes_read_only),
    Fault(the_clock_is_stepped_back, sources=ANY),
)
