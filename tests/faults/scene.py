"""What a fault meets: a snapshot of a guest that writes, seen as files, as LUNs or as both, and readers that go on.

Whatever a read returns is kept as a piece for the proof; a read may fail instead, and only with an error that says that
the view is not there.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from ..rig import libiscsi, prefix, traces, vm
from ..rig.command import SNAPMOUNT, snapmount, snapmount_json
from ..rig.libvirtd import wait_for
from .stage import Stage

VIEWS = (("files",), ("files", "LUNs"), ("LUNs",))
# By which source the snapshot is taken; by storage, how its first disk, on XFS, is cloned and how its second, on btrfs.
PULL, CLONES, HOOK = "pull", "reflink+btrfs", "hook+reflink"
STORAGE = (CLONES, HOOK)
ANY = (PULL, *STORAGE)
READ_TIMEOUT_S = 3
MAX_PAUSE_S = 20  # on a busy host without KVM
COMMAND_S = 120.0
BLOCK = 4096
LARGEST = 64  # blocks that a read asks for
FEWEST = 2  # reads: the first may have been under way
FIRST_READS = {"files": 100, "LUNs": 6}  # at most, before a fault
PAUSE_S = 0.005
# The server does not answer; is gone; is gone since the file was opened; the file is no longer mounted.
REFUSALS = frozenset({errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT})


def _read_on(descriptor: int, offset: int, length: int) -> bytes:
    """Read as read(2) says: less than was asked for is no end of the file yet, an error or 0 bytes may follow.

    An error that follows some bytes ends them; the end of the file, which cannot come within a disk, is an
    AssertionError.
    """
    with mmap.mmap(-1, length) as buffer, memoryview(buffer) as view:
        done = 0
        while done < length:
            try:
                got = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError:
                if done:
                    break
                raise
            assert got, f"the file ends at {offset + done}, within the disk"
            done += got
        return bytes(view[:done])


class Reader:
    """A thread that reads at random places, until it is told to stop."""

    def __init__(self, name: str, read: Callable[[], prefix.Piece]) -> None:
        self.pieces: list[prefix.Piece] = []
        self.refused = 0
        self.last_refusal: OSError | None = None
        self.error: BaseException | None = None  # one that no reader may get
        self.name = name
        self._read = read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(PAUSE_S):
                try:
                    self.pieces.append(self._read())
                except OSError as error:
                    if error.errno not in REFUSALS:
                        raise
                    self.refused += 1
                    self.last_refusal = error
        except BaseException as error:
            self.error = error

    def goes_on(self, reads: int = FEWEST) -> None:
        """Wait until so many reads have returned bytes, the last of which has begun by now or later."""
        goal = len(self.pieces) + reads
        self._wait(lambda: len(self.pieces) >= goal, "gets bytes")

    def is_refused(self) -> None:
        """Wait until a read that has begun by now or later has failed."""
        goal = self.refused + FEWEST
        self._wait(lambda: self.refused >= goal, "is refused")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_for(lambda: condition() or self.error, f"the reader of the {self.name} {what}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it was refused last with {self.last_refusal!r}") from None
        self.check()

    def check(self) -> None:
        if self.error:
            raise AssertionError(f"the reader of the {self.name} got {self.error!r}") from self.error

    def stop(self) -> None:
        """Let it end."""
        self._stop.set()

    def join(self) -> None:
        """Wait until it has ended.  Raises AssertionError if a read hangs, or has failed as none may."""
        self._thread.join(COMMAND_S)
        if self._thread.is_alive():
            raise AssertionError(f"a read of the {self.name} hangs")
        self.check()


@dataclass
class Scene:
    """One round's guest and snapshot; the chance decides what a fault leaves open."""

    stage: Stage
    chance: Random
    views: tuple[str, ...] = ("files",)
    source: str = PULL
    taken: dict[str, Any] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    refused: int = 0  # reads, of readers that have ended
    origin: list[prefix.Piece] = field(default_factory=list)  # the guest's own disks, at a later moment

    @property
    def guest(self) -> vm.VM:
        return self.stage.guest

    @property
    def mountpoint(self) -> Path:
        return self.stage.mountpoint

    # -- commands ------------------------------------------------------------------------------------------------------

    def take_words(self, *options: str) -> list[str]:
        """The arguments that take the snapshot."""
        words = ["--json", "--read-timeout", str(READ_TIMEOUT_S), *self._source_words(), *options]
        if "LUNs" in self.views:
            words += ["--iscsi", "--target", "tgt", "--portal", f"127.0.0.1:{libiscsi.free_port()}"]
        return [*words, self.guest.name, *([str(self.mountpoint)] if "files" in self.views else [])]

    def _source_words(self) -> list[str]:
        if self.source == PULL:
            return []
        drivers = {CLONES: ("reflink", "btrfs"), HOOK: (str(self.stage.hook), "reflink")}[self.source]
        named = [f"{disk.name}={driver}" for disk, driver in zip(self.guest.disks, drivers, strict=True)]
        return ["--max-pause", str(MAX_PAUSE_S), *(word for each in named for word in ("--storage", each))]

    def take(self, *options: str, **of_process: Any) -> None:
        """Take the snapshot, and let the readers begin."""
        self.watch(snapmount(*self.take_words(*options), **of_process).stdout)

    def watch(self, told: str) -> None:
        """Let the readers of a snapshot begin, of which `take --json` has told."""
        self.taken = json.loads(told)
        for view in self.views:
            read = self._read_file if view == "files" else self._read_lun
            own_chance = Random(self.chance.random())
            self.readers.append(Reader(view, partial(read, own_chance)))
        for reader in self.readers:
            reader.goes_on(self.chance.randint(FEWEST, FIRST_READS[reader.name]))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command, to be ended by ended()."""
        command = subprocess.Popen(
            [SNAPMOUNT, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(command)
        return command

    def end_commands(self) -> None:
        """Let those that have been started and run still undo what they have begun."""
        for command in self.started:
            if command.poll() is None:
                command.terminate()
                command.communicate(timeout=COMMAND_S)

    def ended(self, command: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Its exit code, and what it has said on standard output and error: no traceback, not of Python's own."""
        with command:
            said, complaint = command.communicate(timeout=COMMAND_S)
        assert "Traceback" not in complaint, complaint
        return command.returncode, said, complaint

    def delete(self) -> None:
        """End the snapshot as a user does, who does not care who reads."""
        snapmount("delete", "--force", self.guest.name)

    def state(self) -> str:
        """The snapshot's state, '' where there is none."""
        return next((each["state"] for each in snapmount_json("list")), "")

    def state_becomes(self, state: str) -> None:
        wait_for(lambda: self.state() == state, f"the snapshot is shown as {state!r}")

    def ends_by_itself(self) -> None:
        wait_for(lambda: not traces.found(), "the snapshot has ended by itself")

    def is_given_up(self) -> None:
        """Wait until it has been: nobody reads, and the guest goes on."""
        self.state_becomes("gave up")
        self.nobody_reads()
        refusals = [reader.last_refusal for reader in self.readers if reader.name == "files"]
        assert all(refusal and refusal.errno == errno.EIO for refusal in refusals), refusals
        wait_for(lambda: self.guest.state() == "running", "the guest runs")
        wait_for(lambda: not self.guest.has_job(), "the job has ended")

    # -- what is done to it --------------------------------------------------------------------------------------------

    def signal_server(self, number: signal.Signals) -> None:
        os.kill(self.taken["server"]["pid"], number)

    def kill_server(self) -> None:
        self.signal_server(signal.SIGKILL)
        self.state_becomes("dead")

    def kill_server_and_standby(self) -> None:
        """Nobody watches over it any more."""
        os.kill(self.taken["server"]["standby_pid"], signal.SIGKILL)
        self.kill_server()

    def either(self) -> bool:
        """Heads or tails."""
        return self.chance.random() < 0.5

    def a_moment(self, longest_ms: int) -> float:
        """A time of the chance's choosing, in seconds."""
        return self.chance.randrange(longest_ms) / 1000

    # -- reading -------------------------------------------------------------------------------------------------------

    def reads_go_on(self) -> None:
        for reader in self.readers:
            reader.goes_on()

    def reads_are_refused(self) -> None:
        for reader in self.readers:
            reader.is_refused()

    def nobody_reads(self) -> None:
        """From now on no read returns a byte."""
        self._nobody_reads(self.readers)

    def nobody_reads_the_dead_view(self) -> None:
        """As nobody_reads(), where the server was killed.  A LUN's target has files of the view open, and of those the
        kernel still returns what it has cached: true bytes, as the proof will tell.
        """
        self.reads_are_refused()
        self._nobody_reads([reader for reader in self.readers if reader.name == "files"])

    def _nobody_reads(self, readers: list[Reader]) -> None:
        for reader in readers:
            reader.is_refused()
        before = [len(reader.pieces) for reader in readers]
        for reader in readers:
            reader.is_refused()
        assert [len(reader.pieces) for reader in readers] == before, "a view that was lost has returned bytes"

    def stop_reading(self) -> list[prefix.Piece]:
        """Everything that has been read."""
        readers, self.readers = self.readers, []
        self.refused += sum(reader.refused for reader in readers)
        for reader in readers:
            reader.stop()
        for reader in readers:
            reader.join()
        return [piece for reader in readers for piece in reader.pieces]

    def keep_origin(self) -> None:
        """Keep what the guest's own disks hold now: that too must be its writes, and nobody else's."""
        self.origin = [prefix.Piece(number, 0, disk) for number, disk in enumerate(self.guest.read_disks())]

    def mounted_at(self) -> Path:
        """Where it is mounted; snapshots that are published only are mounted too."""
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        [path] = (fields[1] for fields in mounts if fields[0].startswith("snapmount:"))
        return Path(path)

    def lun(self, device: int) -> str:
        """The URL of a disk's LUN, with the secret."""
        target = self.taken["iscsi"]
        return f"iscsi://{target['user']}%{target['secret']}@{target['portals'][0]}/{target['iqn']}/{device + 1}"

    def copying(self) -> list[list[str]]:
        """A command for each view that reads the first disk to its end."""
        by_view = {
            "files": ["cat", str(self.mountpoint / f"{self.guest.disks[0].name}.raw")],
            "LUNs": ["qemu-img", "bench", "-f", "raw", "-r", "-c", "1000000", self.lun(0)]
            if "LUNs" in self.views
            else [],
        }
        return [by_view[view] for view in self.views]

    def _place(self, chance: Random) -> tuple[int, int, int]:
        """A device, an offset and a length, in bytes."""
        device = chance.randrange(len(self.guest.disks))
        blocks = self.guest.disks[device].size // BLOCK
        offset = chance.randrange(blocks)
        return device, offset * BLOCK, min(chance.randint(1, LARGEST), blocks - offset) * BLOCK

    def _read_file(self, chance: Random) -> prefix.Piece:
        device, offset, length = self._place(chance)
        flags = chance.choice((0, os.O_DIRECT))
        descriptor = os.open(self.mountpoint / f"{self.guest.disks[device].name}.raw", os.O_RDONLY | flags)
        try:
            return prefix.Piece(device, offset, _read_on(descriptor, offset, length))
        finally:
            os.close(descriptor)

    def _read_lun(self, chance: Random) -> prefix.Piece:
        device, offset, length = self._place(chance)
        data = libiscsi.read(self.lun(device), offset // BLOCK, length // BLOCK, BLOCK)
        assert len(data) == length, f"a read of {length} bytes at {offset} has returned {len(data)}"
        return prefix.Piece(device, offset, data)
