"""A real systemd: a user's manager, which runs where the host's own init is another program too."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .libvirtd import wait_for

SYSTEMD = Path("/lib/systemd/systemd")
BOOTED = Path("/run/systemd/system")  # sd_booted(3): without it systemd refuses to be a user's manager


class Manager:
    """Commands to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = os.environ | environment

    def systemctl(self, *args: str, check: bool = True) -> str:
        """What `systemctl --user ARGS` prints."""
        command = ["systemctl", "--user", *args]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def answers(self) -> bool:
        return bool(self.systemctl("list-units", "--no-legend", check=False))


@contextlib.contextmanager
def running(units: Path) -> Iterator[Manager]:
    """A manager with the units of that directory, which ends with them.  Raises TimeoutError if none can run."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="snapmount-test-"))
        if not BOOTED.exists():
            BOOTED.mkdir(parents=True)
            stack.callback(os.removedirs, BOOTED)
        environment = {"XDG_RUNTIME_DIR": directory, "SYSTEMD_UNIT_PATH": f"{units}:/usr/lib/systemd/user"}
        process = stack.enter_context(
            subprocess.Popen(
                [SYSTEMD, "--user", "--log-target=null"], env=os.environ | environment, stdin=subprocess.DEVNULL
            )
        )
        stack.callback(process.terminate)
        manager = Manager(environment)
        wait_for(manager.answers, "systemd answers", 20)
        yield manager
