"""An ordinary user of the host, with a home and a runtime directory of the tests' making."""

from __future__ import annotations

import os
import pwd
import shutil
import site
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import snapmount

from .command import SNAPMOUNT


@dataclass(frozen=True)
class Account:
    """A user whose processes get this home directory."""

    user: str
    home: Path

    @property
    def runtime(self) -> Path:
        """XDG_RUNTIME_DIR."""
        return self.home / "run"

    def own(self, path: Path) -> None:
        """Give the user the path, with all below it."""
        subprocess.run(["chown", "-R", f"{self.user}:", path], check=True)

    def options(self) -> dict[str, Any]:
        """For subprocess.run(): run it as this user."""
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
        }
        group = pwd.getpwnam(self.user).pw_gid
        return {"env": environment, "cwd": self.home, "user": self.user, "group": group, "extra_groups": []}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """What the command says, run as this user; it must succeed."""
        words = list(map(str, command))
        done = subprocess.run(words, **self.options(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def snapmount(self) -> list[str | Path]:
        """The command, or a copy of it where the source tree lies in a directory that is closed to other users."""
        if subprocess.run(["test", "-x", SNAPMOUNT], **self.options()).returncode == 0:
            return [SNAPMOUNT]
        libraries = self.home / "libraries"
        if not libraries.exists():
            shutil.copytree(site.getsitepackages()[0], libraries)
            shutil.copytree(Path(snapmount.__file__).parent, libraries / "snapmount")
            self.own(libraries)
        return ["env", f"PYTHONPATH={libraries}", "/usr/bin/python3", "-m", "snapmount"]

    def daemons(self) -> list[int]:
        """The processes of the user that have this runtime directory."""
        listed = subprocess.run(["pgrep", "-u", self.user], capture_output=True, text=True).stdout
        marker = f"XDG_RUNTIME_DIR={self.runtime}\0".encode()
        return [int(pid) for pid in listed.split() if marker in _environment_of(pid)]


def _environment_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
