"""The files of the snapshot are taken away, or there is no space for them: it is the snapshot that suffers."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from snapmount.core.limits import FLOOR_BYTES

from ...rig import clones, traces, vm
from ...rig.command import snapmount
from ...rig.filesystems import filled
from ...rig.libvirtd import wait_for
from ...rig.signals import stopped
from ..scene import CLONES, Scene
from .fault import Fault

ROOM = 72 * vm.MIB  # enough to begin with, and less than the worst case


def the_scratch_files_are_deleted_by_hand(scene: Scene) -> None:
    scene.take()
    for file in list(Path(scene.taken["scratch"]["directory"]).iterdir()):
        file.unlink()
    scene.guest.keeps_writing(2000)
    scene.reads_go_on()
    scene.delete()


def the_socket_is_deleted_by_hand(scene: Scene) -> None:
    scene.take()
    for socket in traces.SOCKETS.glob("domain-*/snapmount-*"):
        socket.unlink()
    scene.reads_go_on()
    scene.delete()


def the_scratch_limit_is_reached(scene: Scene) -> None:
    _take(scene, "--scratch-limit", "16M")
    scene.is_given_up()
    scene.delete()


def the_guest_fills_the_scratch_file_system(scene: Scene) -> None:
    with filled(scene.stage.small, leave=ROOM):
        _take(scene, "--scratch-dir", str(scene.stage.small))
        scene.is_given_up()
        scene.delete()


def somebody_else_fills_the_scratch_file_system(scene: Scene) -> None:
    with contextlib.ExitStack() as full:
        _take(scene, "--scratch-dir", str(scene.stage.small), then=lambda: full.enter_context(_filled(scene)))
        scene.is_given_up()
        scene.delete()


def _filled(scene: Scene) -> contextlib.AbstractContextManager[None]:
    """More or less."""
    return filled(scene.stage.small, leave=scene.chance.choice((0, scene.chance.randrange(48 * vm.MIB))))


def the_scratch_is_full_before_the_server_can_act(scene: Scene) -> None:
    with contextlib.ExitStack() as full:
        with contextlib.ExitStack() as server:

            def stop_and_fill() -> None:
                server.enter_context(stopped(scene.taken["server"]["pid"]))
                full.enter_context(filled(scene.stage.small, leave=0))

            _take(scene, "--scratch-dir", str(scene.stage.small), then=stop_and_fill)
            _guest_is_stopped(scene)
        scene.is_given_up()
        scene.delete()


def the_server_is_killed_and_its_standby_gives_the_snapshot_up(scene: Scene) -> None:
    with contextlib.ExitStack() as full:

        def kill_and_fill() -> None:
            scene.kill_server()
            full.enter_context(_filled(scene))

        _take(scene, "--scratch-dir", str(scene.stage.small), then=kill_and_fill)
        wait_for(lambda: not Path(scene.taken["scratch"]["directory"]).exists(), "the scratch files are gone")
        wait_for(lambda: scene.guest.state() == "running", "the guest runs")
        assert not scene.guest.has_job()
        assert scene.state() == "dead"
        scene.nobody_reads()
        scene.delete()


def the_server_and_its_standby_are_killed_and_delete_frees_the_guest(scene: Scene) -> None:
    with _killed_and_scratch_full(scene):
        scene.nobody_reads_the_dead_view()
        scene.delete()
        assert scene.guest.state() == "running"


def the_server_and_its_standby_are_killed_and_recover_frees_the_guest(scene: Scene) -> None:
    """If there is space again the snapshot lives on, else it is given up and removed."""
    with contextlib.ExitStack() as full:
        full.enter_context(_killed_and_scratch_full(scene))
        if scene.either():
            full.close()
            snapmount("recover")
            scene.reads_go_on()
            scene.delete()
        else:
            assert "scratch space ran out" in snapmount("recover").stdout
            scene.nobody_reads()
        assert scene.guest.state() == "running"


def the_clones_are_deleted_by_hand(scene: Scene) -> None:
    """Of one disk: that is the end of the snapshot."""
    scene.take()
    (directory,) = clones.places(scene.stage.images["xfs"])
    shutil.rmtree(scene.stage.images["xfs"] / directory)
    scene.state_becomes("lost")
    scene.nobody_reads()
    scene.delete()


def the_file_system_of_the_clones_fills_up(scene: Scene) -> None:
    """While it is given up, the guest goes on without an error."""
    with _filled_beside_clones(scene):
        scene.is_given_up()
        scene.delete()


def the_server_is_killed_and_its_standby_removes_the_clones(scene: Scene) -> None:
    with _filled_beside_clones(scene, then=scene.kill_server):
        wait_for(lambda: not clones.places(scene.stage.images["xfs"]), "the clone is gone")
        scene.state_becomes("dead")  # once the standby has let go of it
        scene.nobody_reads()
        scene.delete()


@contextlib.contextmanager
def _filled_beside_clones(scene: Scene, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """The guest, which writes flat out, may soon find no space for what it overwrites.  Without clones it needs none,
    since all of its image is allocated.
    """
    scene.stage.all_is_written()
    scene.take()
    then()
    with filled(scene.stage.images["xfs"], leave=FLOOR_BYTES + scene.chance.choice((-16, 16)) * vm.MIB):
        yield


def _take(scene: Scene, *options: str, then: Callable[[], object] = lambda: None) -> None:
    """Take it while the guest stands still, and do something more, before it overwrites what takes scratch space."""
    scene.stage.all_is_written()
    with scene.guest.suspended():
        scene.take(*options)
        then()


@contextlib.contextmanager
def _killed_and_scratch_full(scene: Scene) -> Iterator[None]:
    with contextlib.ExitStack() as full:

        def kill_and_fill() -> None:
            scene.kill_server_and_standby()
            full.enter_context(filled(scene.stage.small, leave=0))

        _take(scene, "--scratch-dir", str(scene.stage.small), then=kill_and_fill)
        _guest_is_stopped(scene)
        yield


def _guest_is_stopped(scene: Scene) -> None:
    wait_for(lambda: scene.guest.state() == "paused", "the guest is paused")


FAULTS = (
    Fault(the_scratch_files_are_deleted_by_hand),
    Fault(the_socket_is_deleted_by_hand),
    Fault(the_scratch_limit_is_reached),
    Fault(the_guest_fills_the_scratch_file_system),
    Fault(somebody_else_fills_the_scratch_file_system),
    Fault(the_scratch_is_full_before_the_server_can_act),
    Fault(the_server_is_killed_and_its_standby_gives_the_snapshot_up),
    Fault(the_server_and_its_standby_are_killed_and_delete_frees_the_guest),
    Fault(the_server_and_its_standby_are_killed_and_recover_frees_the_guest),
    Fault(the_clones_are_deleted_by_hand, sources=(CLONES,)),
    Fault(the_file_system_of_the_clones_fills_up, sources=(CLONES,)),
    Fault(the_server_is_killed_and_its_standby_removes_the_clones, sources=(CLONES,)),
)
