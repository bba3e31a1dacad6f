"""Records of snapshots that nobody has taken, and a store for them."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snapmount.core.document import to_document
from snapmount.core.fingerprint import Fingerprint
from snapmount.core.imagechain import Chain, Layer
from snapmount.core.origin import NetworkOrigin
from snapmount.core.snapshot import Disk, Snapshot
from snapmount.core.user import User
from snapmount.host.processes import Process
from snapmount.records.record import Record
from snapmount.records.store import Lease, Store
from snapmount.sources import kinds
from snapmount.sources.offline.state import OfflineState
from snapmount.sources.pull import state
from snapmount.sources.pull.state import PullState
from snapmount.sources.storage.state import StorageState
from snapmount.storage.driver import Clone
from snapmount.storage.shapes import HookKept, ReflinkKept

FAR = NetworkOrigin("rbd", "vms/vm1")
ID, OTHER_ID = "3f2a91bc", "00c0ffee"
UUID, OTHER_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f", "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11"
CREATED = datetime(2026, 11, 23, 12, 5, 1, 123, tzinfo=UTC)


def a_snapshot(snapshot_id: str = ID, vm: str = "vm1", uuid: str = UUID, created: datetime = CREATED) -> Snapshot:
    return Snapshot(snapshot_id, vm, uuid, created, "pull", False, (Disk("vda", 1 << 30, "raw", "/vda.img"),), ())


def a_record(snapshot: Snapshot | None = None, mountpoint: str = "/mnt/snap") -> Record:
    snapshot = snapshot or a_snapshot()
    return Record(
        snapshot=snapshot,
        connect="qemu:///system",
        mountpoint=mountpoint,
        mount_source=f"snapmount:vm1:{snapshot.id}",
        source=to_document(PullState("/run/vm1.sock", f"/scratch/snapmount-{snapshot.id}")),
        server=Process.of_pid(os.getpid()),
    )


def records_of_each_source() -> dict[str, Record]:
    """A record of each kind of source, as full as one can be."""
    record, reader = a_record(), User(1, 2, (3,))
    top = Layer("qcow2", "/images/top", data=Layer("raw", "/images/data"))
    chains = (Chain("vda", (top, Layer("raw", "/images/base"))), Chain("vdb", (Layer("raw", FAR),)))
    fingerprints = (Fingerprint("/images/base", 1, 2, 3),)
    kept = to_document(HookKept("/hooks/rbd", ID, f"snapmount-{ID}-0", reader, {}))
    in_files = Clone("reflink", top.paths, ("/f/top", "/f/data"), to_document(ReflinkKept("/images", 1, 2)))
    clones = (in_files, Clone("hook", (str(FAR),), ("/dev/rbd0",), kept))
    offline = OfflineState("/d", chains, fingerprints, reader)
    storage = StorageState("/d", clones, chains, fingerprints, reader, 4, 1.0, pause_s=0.1)
    return {"pull": record} | {each.kind: replace(record, source=to_document(each)) for each in (offline, storage)}


def by_pull(record: Record, **changes: Any) -> Record:
    """The record with other things in what it keeps for that source."""
    return replace(record, source=to_document(replace(state.of(record), **changes)))


class OwnStore(Store):
    """A store that knows its leases: a process holds each of them to its end, a test must let go of them."""

    def __init__(self, directory: Path, lasting: Path | None = None) -> None:
        super().__init__(directory, kinds.check, lasting)
        self.leases: list[Lease] = []

    def lease(self, record: Record, *, lasts: bool = False) -> Lease:
        self.leases.append(super().lease(record, lasts=lasts))
        return self.leases[-1]
