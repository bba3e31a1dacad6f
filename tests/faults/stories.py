"""What can go wrong with a snapshot: each fault as a short story, from the take to the end of the snapshot.

A story takes the snapshot (that may be the very thing that fails), breaks something, says what readers must see then,
and ends the snapshot.  It leaves the proof of what was read, and that nothing is left, to the soak.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..rig import libvirtd, traces
from ..rig.command import snapmount, snapmount_json
from ..rig.libvirtd import wait_for
from ..rig.signals import stopped
from .scene import COMMAND_S, Scene

TAKE_MS = 1500  # what taking a snapshot takes about
PAUSE_MS = 1500


# -- nothing, or nothing much ------------------------------------------------------------------------------------------


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


# -- the server and the commands ---------------------------------------------------------------------------------------


def the_server_is_killed(scene: Scene) -> None:
    scene.take()
    scene.signal_server(signal.SIGKILL)
    scene.state_becomes("dead")
    scene.nobody_reads()
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
    scene.signal_server(signal.SIGKILL)
    scene.state_becomes("dead")
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
    """Taking the snapshot gets a signal at a moment of chance; where that comes too late, it is there and is ended."""
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
    for pid in _servers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code, _, complaint = scene.ended(taking)
    assert code == 0 or "the server process has died" in complaint, (code, complaint)
    if scene.state():
        scene.state_becomes("dead")
        scene.delete()


def _servers() -> list[int]:
    """The processes that serve snapshots, by their records."""
    return [json.loads(record.read_text())["server"]["pid"] for record in traces.RUNTIME.glob("*/record.json")]


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


# -- the mount and those who read --------------------------------------------------------------------------------------


def it_is_unmounted_by_hand(scene: Scene) -> None:
    """LUNs, which hold the files open, live on."""
    scene.take()
    subprocess.run(["umount", "--lazy", scene.mounted_at()], check=True)
    if "LUNs" in scene.views:
        scene.readers[-1].goes_on()
        scene.delete()
    else:
        scene.ends_by_itself()


def the_fuse_connection_is_aborted(scene: Scene) -> None:
    scene.take()
    number = os.minor(os.stat(scene.mounted_at()).st_dev)
    with tempfile.TemporaryDirectory() as connections:  # fuse(4): of all FUSE file systems
        subprocess.run(["mount", "-t", "fusectl", "fusectl", connections], check=True)
        try:
            Path(connections, str(number), "abort").write_text("1")
        finally:
            subprocess.run(["umount", connections], check=True)
    scene.ends_by_itself()


def readers_are_killed_while_they_read(scene: Scene) -> None:
    scene.take()
    with stopped(scene.taken["server"]["pid"]):
        readers = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for command in scene.copying()
        ]
        time.sleep(scene.a_moment(300))
        for reader in readers:
            reader.kill()
    for reader in readers:
        reader.wait(COMMAND_S)
    scene.reads_go_on()
    scene.delete()


def tgtd_is_killed(scene: Scene) -> None:
    scene.views = ("files", "LUNs")
    scene.take()
    files, luns = scene.readers
    for pid in traces.tgtds():
        os.kill(pid, signal.SIGKILL)
    luns.is_refused()
    files.goes_on()
    scene.delete()


# -- the files of the snapshot -----------------------------------------------------------------------------------------


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


# -- QEMU and libvirt --------------------------------------------------------------------------------------------------


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
    scene.delete()


def libvirtd_is_killed_while_a_snapshot_is_taken(scene: Scene) -> None:
    taking = scene.start(*scene.take_words())
    time.sleep(scene.a_moment(TAKE_MS))
    with libvirtd.stopped(signal.SIGKILL):
        code, said, _ = scene.ended(taking)
    if code == 0:
        scene.watch(said)
    if scene.state():
        scene.delete()


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


def the_vm_is_reset(scene: Scene) -> None:
    """Its guest boots anew; QEMU, and so the snapshot, lives on."""
    scene.take()
    scene.guest.virsh("reset", scene.guest.name)
    scene.reads_go_on()
    scene.delete()


@dataclass(frozen=True)
class Fault:
    """A story, and whether the guest's program lives on after it."""

    story: Callable[[Scene], None]
    spares_guest: bool = True

    @property
    def name(self) -> str:
        """The story's, in words."""
        return self.story.__name__.replace("_", " ")


FAULTS = (
    Fault(nothing_happens),
    Fault(the_guest_is_suspended_and_resumed),
    Fault(another_program_waits_to_begin_a_backup),
    Fault(the_server_is_killed),
    Fault(the_server_is_killed_and_the_snapshot_recovered),
    Fault(the_server_is_killed_and_the_next_command_recovers),
    Fault(recover_is_killed),
    Fault(the_server_gets_sigterm),
    Fault(the_server_is_stopped_for_a_moment),
    Fault(the_server_is_stopped_when_it_is_to_end),
    Fault(take_is_interrupted),
    Fault(take_is_killed),
    Fault(the_server_is_killed_while_it_takes),
    Fault(two_take_at_once),
    Fault(two_delete_at_once),
    Fault(it_expires),
    Fault(delete_is_killed),
    Fault(it_is_unmounted_by_hand),
    Fault(the_fuse_connection_is_aborted),
    Fault(readers_are_killed_while_they_read),
    Fault(tgtd_is_killed),
    Fault(the_scratch_files_are_deleted_by_hand),
    Fault(the_socket_is_deleted_by_hand),
    Fault(the_scratch_limit_is_reached),
    Fault(qemu_is_stopped_for_a_moment),
    Fault(qemu_is_stopped_until_reads_fail),
    Fault(qemu_is_stopped_when_the_snapshot_is_to_end),
    Fault(the_job_is_aborted_by_somebody_else),
    Fault(libvirtd_is_killed_and_comes_back),
    Fault(libvirtd_is_away_when_the_snapshot_is_to_end),
    Fault(libvirtd_is_killed_while_a_snapshot_is_taken),
    Fault(the_vm_is_destroyed, spares_guest=False),
    Fault(qemu_is_killed, spares_guest=False),
    Fault(the_vm_is_reset, spares_guest=False),
)
