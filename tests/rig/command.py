"""Runs snapmount as a user does: the installed command, in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SNAPMOUNT = str(Path(sys.executable).parent / "snapmount")
COMMAND_S = 120


def snapmount(*args: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """What the command says; with `check` it must succeed."""
    done = subprocess.run(
        [SNAPMOUNT, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        stdin=subprocess.DEVNULL,
        **options,
    )
    if check:
        assert done.returncode == 0, f"snapmount {args}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
    return done


def refused(*args: str | Path, code: int, **options: Any) -> str:
    """What the command says on standard error when it refuses, with that exit code, and prints nothing else."""
    done = snapmount(*args, check=False, **options)
    assert done.returncode == code, f"snapmount {args}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stdout == ""
    assert done.stderr.startswith("snapmount: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def snapmount_json(*args: str | Path, **options: Any) -> Any:
    """The document that the command prints with --json."""
    return json.loads(snapmount("--json", *args, **options).stdout)


def state_of(name: str) -> tuple[str, str | None]:
    """What `list` tells of the VM's snapshot, its state and the reason for it; `show` would re-attach a dead one."""
    (shown,) = (each for each in snapmount_json("list") if each["vm"]["name"] == name)
    return shown["state"], shown["reason"]


def assert_reads_fail(file: Path, with_errno: int = errno.EIO) -> None:
    """No byte can be read from its beginning on."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
        file.read_bytes()
    assert caught.value.errno == with_errno


def read_direct(path: Path) -> bytes:
    """The file's bytes, past the page cache: each one asked of the server now."""
    with open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | os.O_DIRECT)) as f:
        return b"".join(iter(lambda: _read_aligned(f), b""))


def _read_aligned(f: Any) -> bytes:
    import mmap

    with mmap.mmap(-1, 1 << 20) as buffer:
        return bytes(buffer[: f.readinto(buffer)])
