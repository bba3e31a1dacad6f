"""The mount and those who read are taken away from one another."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from ...rig import traces
from ...rig.signals import stopped
from ..scene import ANY, COMMAND_S, Scene
from .fault import Fault


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


FAULTS = (
    Fault(it_is_unmounted_by_hand, sources=ANY),
    Fault(the_fuse_connection_is_aborted, sources=ANY),
    Fault(readers_are_killed_while_they_read, sources=ANY),
    Fault(tgtd_is_killed, sources=ANY),
)
