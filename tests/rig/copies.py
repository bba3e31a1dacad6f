"""Scratch VMs, as the command boots them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from . import vm
from .command import read_direct, snapmount_json

UP = "guest is up"  # what the test guest says


def boot(*words: str | Path) -> tuple[vm.VM, dict[str, Any]]:
    """Boot a scratch VM; return it as a VM of the rig, and what is told of it."""
    told = snapmount_json("boot", *words)
    return vm.VM(told["name"], Path(told["overlay_directory"])), told


def domains() -> set[str]:
    """The names of all VMs that libvirt knows."""
    listed = subprocess.run(["virsh", "-q", "list", "--all", "--name"], capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def sha256(*files: Path) -> list[str]:
    return [hashlib.sha256(read_direct(file)).hexdigest() for file in files]


def running() -> list[str]:
    """The names of the scratch VMs that run."""
    return [
        each["name"] for shown in snapmount_json("list") for each in shown["scratch_vms"] if each["state"] == "running"
    ]


def gone(told: dict[str, Any]) -> bool:
    """Whether nothing is left of a scratch VM."""
    return told["name"] not in domains() and not Path(told["overlay_directory"]).exists()
