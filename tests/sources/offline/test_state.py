"""What the record keeps of an offline snapshot is read back as it was, through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from snapmount.core.document import from_document, to_document
from snapmount.core.fingerprint import Fingerprint
from snapmount.core.imagechain import Chain, Layer
from snapmount.core.origin import Host, NetworkOrigin
from snapmount.core.user import User
from snapmount.sources.offline.state import OfflineState

FAR = NetworkOrigin("nbd", "x", (Host("h", "1"), Host(socket="/s")))
PLAIN = Chain("vda", (Layer("raw", "/images/a"),))
DEEP = Chain("vdb", (Layer("qcow2", "/images/b", data=Layer("raw", "/dev/c", is_device=True)), Layer("raw", FAR)))
STATE = OfflineState("/d", (PLAIN, DEEP), (Fingerprint("/images/a", 1, 2, 3, 4, 5, "boot"),), User(1, 2, (3, 4)))


def test_it_is_read_back_as_it_was() -> None:
    assert from_document(OfflineState, json.loads(json.dumps(to_document(STATE)))) == STATE


@pytest.mark.parametrize("origin", [1, None, {"protocol": 1}, {}, []])
def test_an_origin_of_another_shape_is_refused(origin: object) -> None:
    document = json.loads(json.dumps(to_document(STATE)))
    document["chains"][1]["layers"][1]["origin"] = origin
    with pytest.raises(ValueError, match=r"chains\[1\].layers\[1\].origin"):
        from_document(OfflineState, document)


def test_only_one_raw_image_of_this_host_is_read_without_qemu() -> None:
    assert PLAIN.path == "/images/a"
    assert DEEP.path is None
    for layer in (Layer("qcow2", "/images/a"), Layer("raw", FAR)):
        assert replace(PLAIN, layers=(layer,)).path is None
    assert list(STATE.served) == ["vdb"]


def test_only_files_of_this_host_are_locked() -> None:
    assert PLAIN.is_locked
    assert not DEEP.is_locked
    assert not Chain("vda", (Layer("raw", "/dev/x", is_device=True),)).is_locked
    assert not Chain("vda", (Layer("qcow2", "/x", data=Layer("raw", "/dev/c", is_device=True)),)).is_locked
