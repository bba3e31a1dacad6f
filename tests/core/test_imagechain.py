"""QEMU is told all that a disk consists of, and finds out nothing by itself."""

from __future__ import annotations

from typing import Any

import pytest

from snapmount.core import imagechain
from snapmount.core.imagechain import Chain, Layer
from snapmount.core.origin import Host, NetworkOrigin
from snapmount.errors import StateError

FILE = {"driver": "file", "read-only": True, "filename": "/x"}


def test_a_raw_file_is_a_raw_file() -> None:
    assert imagechain.node([Layer("raw", "/x")], "n") == {
        "driver": "raw", "node-name": "n", "read-only": True, "file": FILE,
    }  # fmt: skip


def test_an_image_that_could_rest_on_another_and_does_not_is_told_so() -> None:
    assert imagechain.node([Layer("qcow2", "/x")]) == {
        "driver": "qcow2", "read-only": True, "file": FILE, "backing": None,
    }  # fmt: skip


def test_each_layer_of_a_chain_has_its_format() -> None:
    chain = [Layer("qcow2", "/dev/x", is_device=True), Layer("qcow2", "/y"), Layer("raw", "/x")]
    node: Any = imagechain.node(chain, "n")
    assert node["file"] == {"driver": "host_device", "read-only": True, "filename": "/dev/x"}
    assert node["backing"]["driver"] == "qcow2"
    assert node["backing"]["backing"] == {"driver": "raw", "read-only": True, "file": FILE}
    assert "node-name" not in node["backing"]


def test_a_data_file_is_given() -> None:
    node = imagechain.node([Layer("qcow2", "/y", data=Layer("raw", "/x"))])
    assert node["data-file"] == FILE


def test_the_local_files_of_a_chain_are_known() -> None:
    far = NetworkOrigin("nbd", "x", (Host("h"),))
    chain = [Layer("qcow2", "/a", data=Layer("raw", "/b")), Layer("qcow2", far), Layer("raw", "/c")]
    assert imagechain.paths(chain) == ("/a", "/b", "/c")


H1, H2 = Host("h", "1"), Host("i")


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (
            NetworkOrigin("nbd", "e", (Host("h"),)),
            {"driver": "nbd", "server": {"type": "inet", "host": "h", "port": "10809"}, "export": "e"},
        ),
        (
            NetworkOrigin("nbd", "e", (Host(socket="/s"),), "unix"),
            {"driver": "nbd", "server": {"type": "unix", "path": "/s"}, "export": "e"},
        ),
        (NetworkOrigin("https", "/a b", (H1,)), {"driver": "https", "url": "https://h:1/a%20b"}),
        (
            NetworkOrigin("rbd", "pool/image", (H1, H2), snapshot="s", config="/c"),
            {
                "driver": "rbd", "pool": "pool", "image": "image", "snapshot": "s", "conf": "/c",
                "server": [{"host": "h", "port": "1"}, {"host": "i", "port": "6789"}],
            },
        ),
        (NetworkOrigin("rbd", "pool/ns/image"), {"driver": "rbd", "pool": "pool", "namespace": "ns", "image": "image"}),
        (
            NetworkOrigin("iscsi", "iqn.x:y/2", (Host("::1", "3260"),)),
            {"driver": "iscsi", "transport": "tcp", "portal": "[::1]:3260", "target": "iqn.x:y", "lun": 2},
        ),
        (
            NetworkOrigin("nfs", "/d/f", (H2,)),
            {"driver": "nfs", "server": {"type": "inet", "host": "i"}, "path": "/d/f"},
        ),
        (
            NetworkOrigin("gluster", "v/d/f", (H1, H2)),
            {
                "driver": "gluster", "volume": "v", "path": "d/f",
                "server": [{"type": "inet", "host": "h", "port": "1"}, {"type": "inet", "host": "i", "port": "24007"}],
            },
        ),
    ],
    ids=str,
)  # fmt: skip
def test_an_image_in_a_network_is_described_as_qemu_wants_it(origin: NetworkOrigin, told: dict[str, Any]) -> None:
    assert imagechain.node([Layer("raw", origin)])["file"] == {"read-only": True, **told}


@pytest.mark.parametrize(
    "layer",
    [
        Layer("vmdk", "/x"),
        Layer("raw", NetworkOrigin("sheepdog", "x")),
        Layer("raw", NetworkOrigin("nbd", "x", has_tls=True)),
        Layer("raw", NetworkOrigin("iscsi", "no-lun", (H1,))),
        Layer("raw", NetworkOrigin("iscsi", "iqn/x", (H1,))),
        Layer("raw", NetworkOrigin("rbd", "image")),
    ],
    ids=str,
)
def test_what_qemu_cannot_be_told_of_is_refused(layer: Layer) -> None:
    with pytest.raises(StateError, match="can be read while its VM runs only"):
        imagechain.node([layer])


def test_a_disk_without_an_image_is_none() -> None:
    with pytest.raises(ValueError, match="the disk 'vda' has no image"):
        Chain("vda", ())
