"""The snapshot's server and the commands are killed, stopped, interrupted, or run at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ...rig import power, traces
from ...rig.command import snapmount, snapmount_json
from ...rig.libvirtd import wait_for
from ...rig.signals import stopped
from ..scene import ANY, Scene
from .fault import PAUSE_MS, TAKE_MS, Fault


def the_server_is_killed(scene: Scene) -> None:
    scene.take()
    scene.kill_server()
    scene.nobody_reads_the_dead_view()
    scene.delete()


def the_server_is_killed_and_the_snapshot_recovered(scene: Scene) -> None:
    """The same moment again, at the same mountpoint and LUNs."""
    _kill_server_and(scene, "recover")


def the_server_is_killed_and_the_next_command_recovers(scene: Scene) -> None:
    _kill_server_and(scene, "show", scene.guest.name)


def _kill_server_and(scene: Scene, *words: str) -> None:
    scene.take()
    for _ in range(scene.chance.randint(1, 3)):
        (shown,) = snapmount_json("list")
        os.kill(shown["server"]["pid"], signal.SIGKILL)
        scene.state_becomes("dead")
        scene.guest.keeps_writing(scene.chance.randrange(2000))
        snapmount(*words)
        assert scene.state() == "active"
        scene.reads_go_on()
    scene.delete()


def recover_is_killed(scene: Scene) -> None:
    scene.take()
    scene.kill_server()
    recovering = scene.start("recover")
    time.sleep(scene.a_moment(TAKE_MS))
    recovering.kill()
    scene.ended(recovering)
    snapmount("recover")
    wait_for(lambda: scene.state() == "active", "it is there again, whoever has recovered it")
    scene.reads_go_on()
    scene.delete()


def the_server_gets_sigterm(scene: Scene) -> None:
    scene.take()
    scene.signal_server(signal.SIGTERM)
    scene.ends_by_itself()


def the_server_is_stopped_for_a_moment(scene: Scene) -> None:
    scene.take()
    with stopped(scene.taken["server"]["pid"]):
        time.sleep(scene.a_moment(PAUSE_MS))
    scene.reads_go_on()
    scene.delete()


def the_server_is_stopped_when_it_is_to_end(scene: Scene) -> None:
    scene.take()
    with stopped(scene.taken["server"]["pid"]):
        deleting = scene.start("delete", "--force", scene.guest.name)
        time.sleep(scene.a_moment(PAUSE_MS))
    assert scene.ended(deleting)[0] == 0


def take_is_interrupted(scene: Scene) -> None:
    _take_and_send(scene, signal.SIGINT)


def take_is_killed(scene: Scene) -> None:
    _take_and_send(scene, signal.SIGKILL)


def _take_and_send(scene: Scene, number: signal.Signals) -> None:
    """Taking the snapshot gets a signal at a moment of chance; if that comes too late, it is there and is ended."""
    taking = scene.start(*scene.take_words())
    time.sleep(scene.a_moment(TAKE_MS))
    taking.send_signal(number)
    code, said, complaint = scene.ended(taking)
    if code == 0:
        scene.watch(said)
        scene.delete()
    elif number == signal.SIGKILL:
        wait_for(lambda: not traces.found() or scene.state() == "active", "it is undone, or was ready already")
        if scene.state() == "active":
            scene.delete()
    else:
        assert code in (130, -number), (code, complaint)
        scene.ends_by_itself()


def the_server_is_killed_while_it_takes(scene: Scene) -> None:
    taking = scene.start(*scene.take_words())
    wait_for(lambda: scene.state() or taking.poll() is not None, "there is a record")
    time.sleep(scene.a_moment(TAKE_MS))
    for pid in power.servers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code, _, complaint = scene.ended(taking)
    if code == 0 or "is there" in complaint:  # it came too late
        scene.state_becomes("dead")
        scene.delete()
    else:
        assert "the server process has died" in complaint, (code, complaint)
        assert "nothing was left behind" in complaint
        scene.ends_by_itself()


def two_take_at_once(scene: Scene) -> None:
    both = [scene.start(*scene.take_words()) for _ in range(2)]
    ends = [scene.ended(taking) for taking in both]
    assert sorted(code for code, _, _ in ends) == [0, 4], ends
    scene.watch(next(said for code, said, _ in ends if code == 0))
    scene.delete()


def two_delete_at_once(scene: Scene) -> None:
    scene.take()
    both = [scene.start("delete", "--force", scene.guest.name) for _ in range(2)]
    ends = [scene.ended(deleting) for deleting in both]
    codes = sorted(code for code, _, _ in ends)
    assert codes in ([0, 0], [0, 3]), ends  # 3: there is none any more


def it_expires(scene: Scene) -> None:
    scene.take("--expire", "5s")
    scene.ends_by_itself()


def delete_is_killed(scene: Scene) -> None:
    scene.take()
    deleting = scene.start("delete", "--force", scene.guest.name)
    time.sleep(scene.a_moment(TAKE_MS))
    deleting.kill()
    scene.ended(deleting)
    if scene.state():
        snapmount("delete", "--force", scene.taken["id"], check=False)  # unless it has just gone
    scene.ends_by_itself()


FAULTS = (
    Fault(the_server_is_killed, sources=ANY),
    Fault(the_server_is_killed_and_the_snapshot_recovered, sources=ANY),
    Fault(the_server_is_killed_and_the_next_command_recovers, sources=ANY),
    Fault(recover_is_killed, sources=ANY),
    Fault(the_server_gets_sigterm, sources=ANY),
    Fault(the_server_is_stopped_for_a_moment, sources=ANY),
    Fault(the_server_is_stopped_when_it_is_to_end, sources=ANY),
    Fault(take_is_interrupted, sources=ANY),
    Fault(take_is_killed, sources=ANY),
    Fault(the_server_is_killed_while_it_takes, sources=ANY),
    Fault(two_take_at_once, sources=ANY),
    Fault(two_delete_at_once, sources=ANY),
    Fault(it_expires, sources=ANY),
    Fault(delete_is_killed, sources=ANY),
)
