"""The processes behind a snapshot, and their death."""

from __future__ import annotations

import os
import signal
from typing import Any

from .command import snapmount_json
from .libvirtd import wait_for


def kill(shown: dict[str, Any], *, and_standby: bool = False) -> None:
    """Kill the server of a snapshot, and first of all its standby, and wait until all see that."""
    for process in (["standby_pid"] if and_standby else []) + ["pid"]:
        os.kill(shown["server"][process], signal.SIGKILL)
    wait_for(lambda: listed(shown["id"])["state"] == "dead", "list shows that the server is dead")


def listed(snapshot_id: str) -> Any:
    """The snapshot as `list` shows it, which changes nothing."""
    (found,) = (each for each in snapmount_json("list") if each["id"] == snapshot_id)
    return found
