"""Another VM, the helper, has the snapshot's disks attached, or is about to get them, when something happens."""

from __future__ import annotations

import hashlib
import signal
import time

from ...rig import vm
from ...rig.command import read_direct, refused, snapmount, snapmount_json
from ...rig.libvirtd import wait_for
from ..scene import ANY, Scene
from .fault import PAUSE_MS, Fault

ATTACH_MS = 1500  # what attaching takes about
HASHED = 4 * vm.MIB  # the first bytes, of which the helper's guest tells


def a_helper_has_the_disks_and_nothing_happens(scene: Scene) -> None:
    scene.take()
    helper = _attach(scene)
    for disk in snapmount_json("show", scene.guest.name)["attachments"]:
        first = hashlib.sha256(read_direct(scene.mounted_at() / f"{disk['disk']}.raw")[:HASHED]).hexdigest()
        wait_for(lambda: f"disk {disk['serial']}: ro=1 " in helper.output(), "the helper tells", vm.BOOT_S)  # noqa: B023
        assert f"first={first}" in helper.output()
    scene.reads_go_on()
    snapmount("detach", scene.guest.name)
    assert helper.targets() == ["vda"]
    scene.delete()


def delete_takes_the_disks_from_a_helper(scene: Scene) -> None:
    scene.take()
    helper = _attach(scene)
    refused("delete", scene.guest.name, code=4)
    time.sleep(scene.a_moment(PAUSE_MS))
    scene.reads_go_on()
    scene.delete()
    assert helper.targets() == ["vda"]


def the_server_is_killed_when_a_helper_has_the_disks(scene: Scene) -> None:
    scene.take()
    helper = _attach(scene)
    scene.kill_server()
    scene.nobody_reads_the_dead_view()
    if scene.either():
        assert f"is detached from {helper.name}" in snapmount("recover").stderr
        assert helper.targets() == ["vda"]
        scene.reads_go_on()
    scene.delete()
    assert helper.targets() == ["vda"]


def the_helper_is_destroyed(scene: Scene) -> None:
    scene.take()
    helper = _attach(scene)
    time.sleep(scene.a_moment(PAUSE_MS))
    helper.virsh("destroy", helper.name)
    scene.reads_go_on()
    scene.delete()


def attach_is_interrupted(scene: Scene) -> None:
    _attach_and_send(scene, signal.SIGINT)


def attach_is_killed(scene: Scene) -> None:
    _attach_and_send(scene, signal.SIGKILL)


def _attach_and_send(scene: Scene, number: signal.Signals) -> None:
    """Where the signal comes too late, the disks are there."""
    helper = scene.stage.helper()
    scene.take()
    attaching = scene.start("attach", scene.guest.name, helper.name)
    time.sleep(scene.a_moment(ATTACH_MS))
    attaching.send_signal(number)
    code, _, complaint = scene.ended(attaching)
    assert code in (0, 130, -number), (code, complaint)
    if code == 0:
        assert len(helper.targets()) == 3
    elif number == signal.SIGINT:
        assert helper.targets() == ["vda"], complaint
    if scene.either():
        snapmount("detach", scene.guest.name)
        assert helper.targets() == ["vda"]
    scene.reads_go_on()
    scene.delete()
    assert helper.targets() == ["vda"]


def _attach(scene: Scene) -> vm.VM:
    """The helper, which has the disks from now on."""
    helper = scene.stage.helper()
    snapmount("attach", scene.guest.name, helper.name)
    return helper


FAULTS = (
    Fault(a_helper_has_the_disks_and_nothing_happens, sources=ANY),
    Fault(delete_takes_the_disks_from_a_helper, sources=ANY),
    Fault(the_server_is_killed_when_a_helper_has_the_disks, sources=ANY),
    Fault(the_helper_is_destroyed, sources=ANY),
    Fault(attach_is_interrupted, sources=ANY),
    Fault(attach_is_killed, sources=ANY),
)
