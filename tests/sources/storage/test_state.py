"""What the record of a snapshot by storage keeps, and what the disks are made of by it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from snapmount.core.document import DocumentError, from_document, to_document
from snapmount.core.fingerprint import Fingerprint
from snapmount.core.imagechain import Chain, Layer
from snapmount.core.origin import NetworkOrigin
from snapmount.core.user import User
from snapmount.sources.storage.state import StorageState
from snapmount.storage.driver import Clone
from snapmount.storage.shapes import HookKept, ReflinkKept

FAR = NetworkOrigin("rbd", "vms/vm1")
BASE = Layer("raw", "/images/base")
REFLINK = to_document(ReflinkKept("/images", 1, 2))
HOOK = to_document(HookKept("/hooks/rbd", "3f2a91bc", "snapmount-3f2a91bc-0", User(1, 2, (3,)), {"any": ["thing"]}))
TOP = Layer("qcow2", "/images/top", data=Layer("raw", "/images/data"))
STATE = StorageState(
    directory="/d",
    clones=(
        Clone("reflink", ("/images/top", "/images/data"), ("/f/top", "/f/data"), REFLINK),
        Clone("hook", (str(FAR),), ("/dev/rbd0",), HOOK),
    ),
    chains=(Chain("vda", (TOP, BASE)), Chain("vdb", (Layer("raw", FAR),)), Chain("vdc", (BASE,))),
    fingerprints=(Fingerprint("/images/base", 1, 2, 3),),
    reader=User(1, 2, (3,)),
    run_id=4,
    max_pause_s=1.0,
)


def test_it_is_read_back_as_it_was() -> None:
    assert from_document(StorageState, json.loads(json.dumps(to_document(STATE)))) == STATE


def test_a_clone_that_no_driver_could_have_made_is_found_when_the_record_is_read() -> None:
    document = to_document(STATE)
    document["clones"][1]["kept"] = {}
    with pytest.raises(DocumentError, match=r"kept of the hook clone\.hook is missing"):
        from_document(StorageState, document)


def test_the_disks_are_made_of_the_clones_and_of_what_those_rest_on() -> None:
    frozen = Layer("qcow2", "/f/top", data=Layer("raw", "/f/data"))
    assert STATE.shown == (
        Chain("vda", (frozen, BASE)),
        Chain("vdb", (Layer("raw", "/dev/rbd0"),)),
        Chain("vdc", (BASE,)),
    )


def test_a_disk_with_a_url_is_not_read() -> None:
    url = "https://filer/snapshots/1"
    there = replace(STATE, clones=(STATE.clones[0], replace(STATE.clones[1], frozen=(url,))))
    assert there.urls == {"vdb": url}
    assert [chain.disk for chain in there.shown] == ["vda", "vdc"]


def test_what_is_not_cloned_is_shared_with_the_vm() -> None:
    assert STATE.shared == ("/images/base",)
