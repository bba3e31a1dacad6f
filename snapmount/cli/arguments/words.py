"""What a command line asks for, in words: for whoever waits at a terminal."""

from __future__ import annotations

import argparse

# By the verb, with what is on the command line.
_DOING = {
    "take": "taking a snapshot of {vm}",
    "boot": "booting a scratch VM of {source}",
    "checkpoints": "looking at the checkpoints of {vm}",
    "attach": "attaching disks of {snapshot} to {helper}",
    "detach": "detaching disks of {snapshot}",
    "list": "looking at the snapshots",
    "show": "looking at {snapshot}",
    "dirty": "looking for the dirty extents of {snapshot}",
    "delete": "ending {snapshots}",
    "recover": "recovering",
    "umount": "ending the snapshot at {mountpoint}",
    "doctor": "looking at {vm}",
}


def doing(arguments: argparse.Namespace) -> str:
    """What the command does."""
    said = {name: _joined(value) for name, value in vars(arguments).items()}
    if arguments.verb == "doctor":
        said["vm"] = arguments.vm or "this host"
    waiting = f", then waiting for {arguments.wait_for}" if said.get("wait_for") else ""
    return _DOING[arguments.verb].format_map(said) + waiting


def _joined(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
