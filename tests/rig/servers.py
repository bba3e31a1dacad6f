"""The processes behind a snapshot, and their death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from . import traces
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


def restart_host(shown: dict[str, Any], mountpoint: Path) -> None:
    """What a restart of the host leaves of a snapshot that outlives it: no process, no mount, no runtime directory, and
    another boot id.
    """
    kill(shown, and_standby=True)
    for pid in traces.tgtds():
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["umount", "-l", mountpoint], check=True)
    shutil.rmtree(traces.RUNTIME, ignore_errors=True)
    (record,) = traces.SCRATCH.glob(f"records-*/{shown['id']}/record.json")
    document = json.loads(record.read_text())
    for process in ("server", "standby"):
        document[process]["boot_id"] = "another"
    record.write_text(json.dumps(document))
