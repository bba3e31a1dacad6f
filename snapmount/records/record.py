"""The record of a snapshot: all that must be known to show it, to take it over and to undo it.  store.py keeps it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..core.document import Reshaped
from ..core.iscsi import Target
from ..core.lifecycle import State
from ..core.snapshot import Snapshot
from ..host.processes import Process, boot_id
from .kept import Kept

VERSION = 7


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record of this version, or of one before it that was released; so that snapshots outlive an
    upgrade.  Raises KeyError or ValueError for any other.
    """
    fields = dict(document)
    version = fields.pop("version")
    if version == 6:  # all that only one source reads was of the record itself
        policy = fields.pop("terms")
        fields["source"] = {"kind": "pull", "policy": policy} | {
            name: fields.pop(name) for name in ("socket", "scratch")
        }
    elif version != VERSION:
        raise ValueError("it was written by another version of snapmount, which this one does not know")
    return fields


@dataclass(frozen=True)
class Publication:
    """What is, or may be, published over iSCSI."""

    backend: str  # of publish.iscsi: 'lio' or 'tgt'
    target: Target


@dataclass(frozen=True)
class Record(Reshaped):
    """All that must be known to show a snapshot, and to undo it without the process that made it."""

    snapshot: Snapshot
    connect: str  # libvirt connection URI
    mountpoint: str  # absolute, symbolic links resolved
    mount_source: str  # the source in /proc/self/mountinfo: the proof that a mount is ours
    source: Mapping[str, Any]  # {"kind": ..., ...}: what the source that made it must know, and only that reads
    server: Process
    standby: Process | None = None  # of the server: who sees to it that the guest does not suffer when that was killed
    state: State = State.STARTING
    was_shown: bool = False  # the view has been readable
    reason: str | None = None  # why it is LOST, or was given up; it stays when the snapshot ends
    problem: str | None = None  # of LEFTOVER: what could not be undone
    frozen: bool = False  # the guest's file systems may be frozen: they must be thawed
    paused_run: int | None = None  # libvirt's id of that run of the VM which may be paused: it must be resumed
    is_hidden: bool = False  # nobody asked for the mount: it is for LUNs or scratch VMs alone
    is_for_boot: bool = False  # taken for scratch VMs: it ends with the last of them
    is_open: bool = False  # every user may read the files
    publication: Publication | None = None
    read_timeout_s: float = 30.0
    expires_s: float | None = None  # by CLOCK_MONOTONIC, which nobody sets
    expires_at: datetime | None = None  # the same by the clock, for who finds it after a reboot

    @property
    def id(self) -> str:
        return self.snapshot.id

    @property
    def kept(self) -> Kept:
        """As far as undoing it needs."""
        snapshot = self.snapshot
        return Kept(snapshot.id, snapshot.vm_name, snapshot.vm_uuid, self.connect, self.source)

    def is_meant_by(self, word: str) -> bool:
        """Whether the word is its id, the name or uuid of its VM, or its mountpoint."""
        return word in (self.id, self.snapshot.vm_name, self.snapshot.vm_uuid) or (
            self.mountpoint == os.path.realpath(word)
        )

    def noted(self, state: State, why: str | None) -> dict[str, Any]:
        """The fields that note that state.  `why` is the reason of LOST and GAVE_UP, or the problem of LEFTOVER; what
        was noted before stays.
        """
        if state is State.LEFTOVER:
            return {"state": state, "problem": why}
        return {"state": state, "reason": why or self.reason}

    @property
    def why(self) -> str | None:
        """Why it is in its state: what could not be undone, and why it was lost or given up before."""
        if self.problem and self.reason:
            return f"{self.problem}; before that: {self.reason}"
        return self.problem or self.reason

    @property
    def left_s(self) -> float | None:
        """How long it has until it expires."""
        if self.expires_s is None:
            return None
        if self.expires_at and self.server.boot_id != boot_id():
            return max(0.0, (self.expires_at - datetime.now(UTC)).total_seconds())
        return max(0.0, self.expires_s - time.monotonic())

    @property
    def has_expired(self) -> bool:
        """Whether it has no time left."""
        return self.left_s == 0

    @property
    def expires(self) -> datetime | None:
        """When that will be, as the clock goes now; None if it never expires, or not before the year 10000."""
        try:
            return None if self.left_s is None else datetime.now(UTC) + timedelta(seconds=self.left_s)
        except OverflowError:
            return None

    @property
    def whereabouts(self) -> str:
        """Where the view is, in words that follow a comma."""
        where = [] if self.is_hidden else [f"mounted at {self.mountpoint}"]
        where += [f"published over iSCSI by {self.publication.backend}"] if self.publication else []
        where += ["shown to scratch VMs"] if self.is_for_boot else []
        return " and ".join(where) or "not shown yet"

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        """The shape of record.json."""
        return {"version": VERSION, **written}

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        return upgraded(document)
