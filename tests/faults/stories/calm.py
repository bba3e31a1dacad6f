"""Nothing happens to the snapshot, or nothing much."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from ..scene import ANY, Scene
from .fault import PAUSE_MS, Fault


def nothing_happens(scene: Scene) -> None:
    scene.take()
    scene.guest.keeps_writing(scene.chance.randrange(5000))
    scene.reads_go_on()
    scene.delete()


def the_guest_is_suspended_and_resumed(scene: Scene) -> None:
    scene.take()
    scene.guest.virsh("suspend", scene.guest.name)
    scene.reads_go_on()
    scene.guest.virsh("resume", scene.guest.name)
    scene.reads_go_on()
    scene.delete()


def another_program_waits_to_begin_a_backup(scene: Scene) -> None:
    """libvirt lets it begin when ours has ended; it is not ours to end."""
    scene.take()
    with ThreadPoolExecutor(1) as other:
        begun = other.submit(scene.guest.begin_foreign_backup)
        time.sleep(scene.a_moment(PAUSE_MS))
        scene.reads_go_on()
        scene.delete()
        begun.result()
    assert scene.guest.has_job()
    scene.guest.end_foreign_backup()


FAULTS = (
    Fault(nothing_happens, sources=ANY),
    Fault(the_guest_is_suspended_and_resumed, sources=ANY),
    Fault(another_program_waits_to_begin_a_backup, sources=ANY),
)
