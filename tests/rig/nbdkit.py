"""nbdkit as an NBD server that misbehaves as it is told to, and logs what it is asked."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .libvirtd import wait_for

DISK = random.Random(7).randbytes(1 << 20)
STOP_S = 5.0

# Reads of the second half wait for a writer of the pipe, which never comes.
HALF_STALLED = """\
if [ "$4" -ge 524288 ]; then read -r _ <"$PIPE"; fi
exec dd if="$DISK" skip="$4" count="$3" iflag=skip_bytes,count_bytes status=none"""


class Server:
    """An NBD server whose only export is called vda."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "nbd.sock")
        self._log = directory / "log"
        self._control = directory / "control"
        self._failing = directory / "failing"
        self._disk = directory / "disk"
        self._pid_file = directory / "pid"
        self._pipe = directory / "pipe"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, disk: bytes = DISK, error: str = "EIO", half_stalled: bool = False) -> None:
        """Serve that disk; failing reads fail with that error."""
        self._disk.write_bytes(disk)
        plugin = ["file", str(self._disk)]
        if half_stalled:
            os.mkfifo(self._pipe)
            plugin = ["eval", "thread_model=echo parallel", f"get_size=echo {len(disk)}", f"pread={HALF_STALLED}"]
        filters = ["log", "pause", "error", "exportname"]
        options = [f"logfile={self._log}", f"pause-control={self._control}"]
        options += [f"error-pread={error}", "error-pread-rate=100%", f"error-pread-file={self._failing}"]
        options += ["exportname-strict=true", "exportname=vda"]
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly"]
        command += ["--unix", self.socket, "--pidfile", str(self._pid_file)]
        self._process = subprocess.Popen(
            [*command, *(f"--filter={each}" for each in filters), *plugin, *options],
            env=os.environ | {"DISK": str(self._disk), "PIPE": str(self._pipe)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._is_ready, "nbdkit is ready")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "nbdkit has ended"
        return self._pid_file.exists() and self._pid_file.read_text() == f"{self._process.pid}\n"

    def kill(self) -> None:
        """End the server without a word to its clients."""
        self._end(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server alone."""
        assert self._process
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the server, which removes what it has made; if it holds requests back, it must be killed."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        """End the server by a signal to it and to what it has started."""
        if self._process:
            os.killpg(self._process.pid, number)
            self._process.wait(STOP_S)
            self._process = None
            for left in (self._pid_file, self._control, Path(self.socket)):
                left.unlink(missing_ok=True)

    def hold_back(self) -> None:
        """Answer no request that comes from now on."""
        self._order(b"p")

    def go_on(self) -> None:
        """Answer the requests that were held back, and those that come."""
        self._order(b"r")

    def _order(self, order: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._control))
            control.sendall(order)
            assert control.recv(1) == order.upper()

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Answer each read with an error."""
        self._failing.touch()
        try:
            yield
        finally:
            self._failing.unlink()

    def connections(self) -> int:
        """How many there have been since the start."""
        return self._log.read_text().count(" Connect ")

    def open_connections(self) -> int:
        return self.connections() - self._log.read_text().count(" Disconnect ")

    def reads(self) -> int:
        """How many have come since the start."""
        return self._log.read_text().count(" Read ")

    def longest_read(self) -> int:
        """The length in bytes of the longest read since the start."""
        lengths = re.findall(r" Read .*count=(0x[0-9a-f]+)", self._log.read_text())
        return max((int(length, 16) for length in lengths), default=0)
