"""One qemu-storage-daemon that exports disks by NBD, read-only, on a socket of ours.

It runs as QEMU's user, has no monitor, and ends with us, however we end: there is never one that nobody owns.
What it is told is explicit (core/imagechain.py).  https://www.qemu.org/docs/master/tools/qemu-storage-daemon.html
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from ..core import imagechain, names, qemulock
from ..core.imagechain import Layer
from ..core.user import User
from ..errors import StateError, UnreachableError
from ..host import execution, privileges
from . import nbd

log = logging.getLogger(__name__)

PROGRAM = "qemu-storage-daemon"
START_S = 60.0  # a server of a network image may take its time
END_S = 5.0
MOST_CONNECTIONS = nbd.MOST_CONNECTIONS + 20
SAID_MAX = 4096


class Daemon:
    """A qemu-storage-daemon that runs, or has ended."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, said: int) -> None:
        self._process = process
        self._pidfd = pidfd
        self._said = said  # a descriptor of what it has written to stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ended(self) -> str:
        """Return when it has ended, and how, as a sentence."""
        with _closing(os.dup(self._pidfd)) as own:  # trio lets one task wait for a descriptor
            await trio.lowlevel.wait_readable(own)
        status = self._process.wait()
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"has ended with exit status {status}"
        said = self.said()
        return f"{PROGRAM} {how}" + (f": {said}" if said else "")

    def said(self) -> str:
        """What it has complained about."""
        text = os.pread(self._said, SAID_MAX, 0).decode(errors="replace").strip()
        return text.removeprefix(f"{PROGRAM}: ").rpartition("}: ")[2]  # the JSON of the node that it could not open

    async def end(self) -> None:
        """End it, and wait for that."""
        for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            self._process.send_signal(number)
            with trio.move_on_after(patience_s):
                await self.wait_ended()
                return
            log.warning("%s (process %d) has not ended within %g s", PROGRAM, self.pid, patience_s)


@contextlib.asynccontextmanager
async def serving(
    disks: Mapping[str, Sequence[Layer]],
    path: Path,
    user: User,
    bitmaps: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Daemon]:
    """A daemon that exports each of these disks by its name, on a unix socket at that path, for as long as the block
    lasts; with some of them a bitmap of that name that is stored in the disk's first image.

    Raises StateError if QEMU cannot open an image, UnreachableError if it does not come to that, MissingError
    if it is not installed.  Called from the main thread alone.
    """
    with _closing(os.memfd_create("stderr")) as said:
        process = _start(_command(disks, bitmaps), path, user, said)
        with _closing(os.pidfd_open(process.pid)) as pidfd:
            daemon = Daemon(process, pidfd, said)
            try:
                await _until_ready(daemon, path, next(iter(disks)))
                log.info("%s (process %d) exports %s", PROGRAM, daemon.pid, ", ".join(disks))
                yield daemon
            finally:
                with trio.CancelScope(shield=True):
                    await daemon.end()
                _remove(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _start(command: list[str], path: Path, user: User, said: int) -> subprocess.Popen[bytes]:
    """Not by trio, which starts programs in threads: with such a thread, which soon ends, the daemon would too."""
    assert threading.current_thread() is threading.main_thread()
    _remove(path)  # that of one that has ended with a server before us
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))  # by us: it lies in a directory that is closed to QEMU's user
        except OSError as error:  # of a path that is too long it has no number: unix(7)
            raise StateError(f"the socket {path} cannot be made: {error.strerror or error}") from error
        listener.listen(MOST_CONNECTIONS)
        server = f"addr.type=fd,addr.str={listener.fileno()},max-connections={MOST_CONNECTIONS}"
        command = [*privileges.as_reader(user, dies_with_us=True), PROGRAM, "--nbd-server", server, *command]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # a Ctrl-C is for us, and ends it in its turn
                env=os.environ | {"LC_ALL": "C"},
            )
        except OSError as error:
            raise execution.cannot_run(command[0], error) from error


def _command(disks: Mapping[str, Sequence[Layer]], bitmaps: Mapping[str, str]) -> list[str]:
    """Its images and exports.  Raises StateError."""
    command = []
    for number, (name, chain) in enumerate(disks.items()):
        node = f"disk{number}"
        command += ["--blockdev", json.dumps(imagechain.node(chain, node))]
        export: dict[str, Any] = {"type": "nbd", "id": node, "node-name": node, "name": name, "writable": False}
        if name in bitmaps:
            export["bitmaps"] = [bitmaps[name]]
        command += ["--export", json.dumps(export)]
    return command


async def _until_ready(daemon: Daemon, path: Path, export: str) -> None:
    """Return when it answers, which it does once it has opened all images."""
    ended: list[str] = []

    async def wait_ended() -> None:
        ended.append(await daemon.wait_ended())
        nursery.cancel_scope.cancel()

    with trio.move_on_after(START_S) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_ended)
            await _until_it_answers(path, export)
            nursery.cancel_scope.cancel()
    if ended:
        raise _refusal(daemon, ended[0])
    if patience.cancelled_caught:
        raise UnreachableError(f"{PROGRAM} has not opened the images within {START_S:g} s")


async def _until_it_answers(path: Path, export: str) -> None:
    while True:
        try:
            connection = await nbd.connect(str(path), export)
        except nbd.SlowError:
            continue
        except UnreachableError:
            await trio.sleep_forever()  # it is ending, and will be told so
        connection.cut()
        return


def _refusal(daemon: Daemon, how: str) -> StateError:
    said = daemon.said()
    path = qemulock.refused(said)
    if path is not None:
        return StateError(
            f"another process has {path or 'an image'} open, and QEMU's locks do not let both have it",
            f"{names.command('fuser', '--verbose', path or 'IMAGE')}   (which process that is)",
        )
    return StateError(f"QEMU cannot open the images: {said}" if said else how)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
