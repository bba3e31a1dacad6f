"""A scratch VM runs on the snapshot, or is about to, when something happens: to it, or to what it rests on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ...rig import traces, vm
from ...rig.command import refused, snapmount, snapmount_json
from ...rig.libvirtd import wait_for
from ..scene import ANY, Scene
from .fault import PAUSE_MS, Fault

UP = "guest is up"
BOOT_MS = 2500  # what making a scratch VM takes about


def a_scratch_vm_runs_and_nothing_happens(scene: Scene) -> None:
    """Its guest makes the same writes as the original's did, from the first one on: one that went astray is proven."""
    scene.take()
    scratch = _boot(scene, "--wait-for", UP)
    scratch.keeps_writing(scene.chance.randrange(1000))
    scene.reads_go_on()
    if scene.either():
        scratch.virsh("destroy", scratch.name)
        _none_is_left(scene)
    scene.delete()
    scene.keep_origin()


def delete_ends_a_scratch_vm(scene: Scene) -> None:
    scene.take()
    _boot_for_a_while(scene)
    refused("delete", scene.guest.name, code=4)
    scene.reads_go_on()
    scene.delete()
    scene.keep_origin()


def the_server_is_killed_under_a_scratch_vm(scene: Scene) -> None:
    scene.take()
    _boot_for_a_while(scene)
    scene.kill_server()
    scene.nobody_reads_the_dead_view()
    if scene.either():
        assert "has been ended: its disks have died" in snapmount("recover").stderr
        assert _scratch_vms() == []
        scene.reads_go_on()
    scene.delete()
    scene.keep_origin()


def the_original_is_destroyed_under_a_scratch_vm(scene: Scene) -> None:
    scene.take()
    scratch = _boot_for_a_while(scene)
    scene.guest.virsh("destroy", scene.guest.name)
    scene.state_becomes("lost")
    scene.nobody_reads()
    assert scratch.state() in ("running", "paused"), "it gets errors, and lives"
    scene.delete()


def the_qemu_of_a_scratch_vm_is_killed(scene: Scene) -> None:
    scene.take()
    scratch = _boot_for_a_while(scene)
    os.kill(scratch.qemu_pid(), signal.SIGKILL)
    _none_is_left(scene)
    scene.reads_go_on()
    scene.delete()
    scene.keep_origin()


def boot_is_interrupted(scene: Scene) -> None:
    _boot_and_send(scene, signal.SIGINT)


def boot_is_killed(scene: Scene) -> None:
    _boot_and_send(scene, signal.SIGKILL)


def _boot_and_send(scene: Scene, number: signal.Signals) -> None:
    """Where the signal comes too late, the scratch VM runs."""
    scene.take()
    booting = scene.start("boot", scene.guest.name)
    time.sleep(scene.a_moment(BOOT_MS))
    booting.send_signal(number)
    code, _, complaint = scene.ended(booting)
    assert code in (0, 130, -number), (code, complaint)
    if code == 0:
        assert _scratch_vms() == ["running"]
    elif number == signal.SIGKILL:
        wait_for(lambda: _scratch_vms() in ([], ["running"]), "it is undone, or was there already")
    else:
        assert _scratch_vms() == [], complaint
    scene.reads_go_on()
    scene.delete()
    scene.keep_origin()


def boot_is_interrupted_while_it_takes_a_snapshot(scene: Scene) -> None:
    _take_by_boot_and_send(scene, signal.SIGINT)


def boot_is_killed_while_it_takes_a_snapshot(scene: Scene) -> None:
    _take_by_boot_and_send(scene, signal.SIGKILL)


def _take_by_boot_and_send(scene: Scene, number: signal.Signals) -> None:
    """The snapshot is the scratch VM's, and ends with it."""
    booting = scene.start("boot", scene.guest.name)
    time.sleep(scene.a_moment(BOOT_MS + PAUSE_MS))
    booting.send_signal(number)
    code, _, complaint = scene.ended(booting)
    assert code in (0, 130, -number), (code, complaint)
    if number == signal.SIGKILL:
        wait_for(lambda: not traces.found() or "running" in _scratch_vms(), "it is undone, or was there already")
    if code == 0 or _scratch_vms():
        scene.delete()
    scene.ends_by_itself()
    scene.keep_origin()


def _boot(scene: Scene, *options: str) -> vm.VM:
    told = snapmount_json("boot", *options, scene.guest.name)
    return vm.VM(told["name"], Path(told["overlay_directory"]))


def _boot_for_a_while(scene: Scene) -> vm.VM:
    """A scratch VM whose firmware, kernel or program runs."""
    scratch = _boot(scene)
    time.sleep(scene.a_moment(2 * PAUSE_MS))
    return scratch


def _scratch_vms() -> list[str]:
    """The states of all that are shown."""
    return [each["state"] for shown in snapmount_json("list") for each in shown["scratch_vms"]]


def _none_is_left(scene: Scene) -> None:
    wait_for(lambda: not _scratch_vms(), "nothing is left of the scratch VM")


FAULTS = (
    Fault(a_scratch_vm_runs_and_nothing_happens, sources=ANY),
    Fault(delete_ends_a_scratch_vm, sources=ANY),
    Fault(the_server_is_killed_under_a_scratch_vm, sources=ANY),
    Fault(the_original_is_destroyed_under_a_scratch_vm, spares_guest=False),
    Fault(the_qemu_of_a_scratch_vm_is_killed, sources=ANY),
    Fault(boot_is_interrupted, sources=ANY),
    Fault(boot_is_killed, sources=ANY),
    Fault(boot_is_interrupted_while_it_takes_a_snapshot),
    Fault(boot_is_killed_while_it_takes_a_snapshot),
)
