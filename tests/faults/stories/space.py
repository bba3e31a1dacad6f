"""The files of the snapshot are taken away, or there is no space for them."""

from __future__ import annotations

from pathlib import Path

from ...rig import traces
from ..scene import Scene
from .fault import Fault


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
    scene.guest.virsh("suspend", scene.guest.name)
    try:
        scene.take("--scratch-limit", "16M")
    finally:
        scene.guest.virsh("resume", scene.guest.name)
    scene.state_becomes("gave up")
    scene.nobody_reads()
    scene.delete()


FAULTS = (
    Fault(the_scratch_files_are_deleted_by_hand),
    Fault(the_socket_is_deleted_by_hand),
    Fault(the_scratch_limit_is_reached),
)
