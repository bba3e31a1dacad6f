"""QEMU and libvirt are stopped, killed, or do what somebody else tells them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from ...rig import libvirtd
from ...rig.command import snapmount
from ...rig.signals import stopped
from ..scene import ANY, STORAGE, Scene
from .fault import PAUSE_MS, TAKE_MS, Fault


def qemu_is_stopped_for_a_moment(scene: Scene) -> None:
    scene.take()
    with stopped(scene.guest.qemu_pid()):
        time.sleep(scene.a_moment(PAUSE_MS))
    scene.reads_go_on()
    scene.delete()


def qemu_is_stopped_until_reads_fail(scene: Scene) -> None:
    scene.take()
    with stopped(scene.guest.qemu_pid()):
        scene.reads_are_refused()
    scene.reads_go_on()
    scene.delete()


def qemu_is_stopped_when_the_snapshot_is_to_end(scene: Scene) -> None:
    scene.take()
    with stopped(scene.guest.qemu_pid()):
        deleting = scene.start("delete", "--force", scene.guest.name)
        time.sleep(scene.a_moment(2 * PAUSE_MS))
    code, _, complaint = scene.ended(deleting)
    assert code == 0, complaint


def the_job_is_aborted_by_somebody_else(scene: Scene) -> None:
    scene.take()
    scene.guest.abort_job()
    scene.state_becomes("lost")
    scene.nobody_reads()
    scene.delete()


def libvirtd_is_killed_and_comes_back(scene: Scene) -> None:
    scene.take()
    with libvirtd.stopped(signal.SIGKILL):
        scene.reads_go_on()
    scene.reads_go_on()
    scene.delete()


def libvirtd_is_away_when_the_snapshot_is_to_end(scene: Scene) -> None:
    scene.take()
    with libvirtd.stopped():
        done = snapmount("delete", "--force", scene.guest.name, check=False)
        assert done.returncode == 8, done.stderr
        assert scene.state() == "leftover"
    scene.ends_by_itself()


def libvirtd_is_killed_while_a_snapshot_is_taken(scene: Scene) -> None:
    taking = scene.start(*scene.take_words())
    time.sleep(scene.a_moment(TAKE_MS))
    with libvirtd.stopped(signal.SIGKILL):
        code, said, _ = scene.ended(taking)
    if code == 0:
        scene.watch(said)
        scene.delete()
    scene.ends_by_itself()


def the_vm_is_destroyed(scene: Scene) -> None:
    scene.take()
    scene.guest.virsh("destroy", scene.guest.name)
    scene.state_becomes("lost")
    scene.nobody_reads()
    scene.delete()


def qemu_is_killed(scene: Scene) -> None:
    scene.take()
    os.kill(scene.guest.qemu_pid(), signal.SIGKILL)
    scene.state_becomes("lost")
    scene.nobody_reads()
    scene.delete()


def the_vm_is_destroyed_and_its_clones_live_on(scene: Scene) -> None:
    _end_and_read_on(scene, lambda: scene.guest.virsh("destroy", scene.guest.name))


def qemu_is_killed_and_the_clones_live_on(scene: Scene) -> None:
    _end_and_read_on(scene, lambda: os.kill(scene.guest.qemu_pid(), signal.SIGKILL))


def _end_and_read_on(scene: Scene, end: Callable[[], object]) -> None:
    scene.take()
    end()
    if scene.either():
        scene.kill_server()
        snapmount("recover")
    scene.reads_go_on()
    assert scene.state() == "active"
    scene.delete()


def qemu_is_stopped_and_the_clones_are_read(scene: Scene) -> None:
    scene.take()
    with stopped(scene.guest.qemu_pid()):
        scene.reads_go_on()
        scene.delete()


def the_vm_is_reset(scene: Scene) -> None:
    """Its guest boots anew; QEMU, and so the snapshot, lives on."""
    scene.take()
    scene.guest.virsh("reset", scene.guest.name)
    scene.reads_go_on()
    scene.delete()


FAULTS = (
    Fault(qemu_is_stopped_for_a_moment, sources=ANY),
    Fault(qemu_is_stopped_until_reads_fail),
    Fault(qemu_is_stopped_when_the_snapshot_is_to_end, sources=ANY),
    Fault(the_job_is_aborted_by_somebody_else),
    Fault(libvirtd_is_killed_and_comes_back, sources=ANY),
    Fault(libvirtd_is_away_when_the_snapshot_is_to_end),
    Fault(libvirtd_is_killed_while_a_snapshot_is_taken, sources=ANY),
    Fault(the_vm_is_destroyed, spares_guest=False),
    Fault(qemu_is_killed, spares_guest=False),
    Fault(the_vm_is_destroyed_and_its_clones_live_on, spares_guest=False, sources=STORAGE),
    Fault(qemu_is_killed_and_the_clones_live_on, spares_guest=False, sources=STORAGE),
    Fault(qemu_is_stopped_and_the_clones_are_read, sources=STORAGE),
    Fault(the_vm_is_reset, spares_guest=False, sources=ANY),
)
