"""What a disk consists of: the image that the guest writes to and those that it rests on; and how QEMU is told of them.

QEMU finds out nothing by itself: each layer has its format, so that a raw image in which a guest has written the header
of another format stays raw, and a backing file, or the word that there is none.  BlockdevOptions in
qapi/block-core.json of QEMU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import StateError
from .origin import Host, NetworkOrigin, Origin

WITH_BACKING = frozenset({"qcow", "qcow2", "qed"})
FORMATS = WITH_BACKING | {"raw", "vdi", "vpc"}  # each image of these is one file, but for a qcow2's data file
_URL_PROTOCOLS = frozenset({"http", "https", "ftp", "ftps"})

Node = Mapping[str, Any]  # of QEMU's block layer, as JSON


@dataclass(frozen=True)
class Layer:
    """An image: of a disk the first one is what the guest writes to, each rests on the next."""

    format: str
    origin: Origin
    is_device: bool = False  # a block device of this host
    data: Layer | None = None  # where a qcow2 image keeps its clusters outside of itself: a raw one

    @property
    def paths(self) -> tuple[str, ...]:
        """The files and block devices of this host that it consists of."""
        own = (self.origin,) if isinstance(self.origin, str) else ()
        return own + (self.data.paths if self.data else ())


@dataclass(frozen=True)
class Chain:
    """What a disk consists of."""

    disk: str
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.layers:
            raise ValueError(f"the disk {self.disk!r} has no image")

    @property
    def path(self) -> str | None:
        """Of a disk that is one raw image of this host: it is read without QEMU."""
        top = self.layers[0]
        is_plain = len(self.layers) == 1 and top.format == "raw" and isinstance(top.origin, str)
        return str(top.origin) if is_plain else None

    @property
    def is_locked(self) -> bool:
        """Whether QEMU's lock keeps others from writing to it: all of it is files of this host."""
        parts = [part for layer in self.layers for part in (layer, layer.data) if part]
        return all(isinstance(part.origin, str) and not part.is_device for part in parts)


def served(chains: Sequence[Chain]) -> dict[str, tuple[Layer, ...]]:
    """The disks that QEMU has to read for us, by their names, with their layers."""
    return {chain.disk: chain.layers for chain in chains if chain.path is None}


def paths(chain: Sequence[Layer]) -> tuple[str, ...]:
    """The files and block devices of this host that a disk consists of, its first one first."""
    return tuple(path for layer in chain for path in layer.paths)


def node(chain: Sequence[Layer], name: str | None = None) -> Node:
    """The read-only block node of a disk, with all that it consists of; QEMU calls it by the name.

    Raises StateError for what QEMU cannot be told of.
    """
    top, rest = chain[0], chain[1:]
    if top.format not in FORMATS:
        raise StateError(f"{top.origin}: an image of the format {top.format!r} can be read while its VM runs only")
    described: dict[str, Any] = {"driver": top.format, "read-only": True, "file": _protocol(top)}
    if name is not None:
        described["node-name"] = name
    if top.format in WITH_BACKING:
        described["backing"] = node(rest) if rest else None
    if top.data:
        described["data-file"] = _protocol(top.data)
    return described


def _protocol(layer: Layer) -> Node:
    origin = layer.origin
    if isinstance(origin, NetworkOrigin):
        return {"read-only": True, **_network(origin)}
    return {"read-only": True, "driver": "host_device" if layer.is_device else "file", "filename": origin}


def _network(origin: NetworkOrigin) -> Node:
    """Raises StateError."""
    describe = _DESCRIBE.get(origin.protocol)
    described = describe(origin) if describe else None
    if described is None or (origin.has_tls and origin.protocol not in _URL_PROTOCOLS):
        raise StateError(f"{origin}: an image that is reached like this can be read while its VM runs only")
    return described


def _nbd(origin: NetworkOrigin) -> Node:
    return {"driver": "nbd", "server": _server(_first(origin), "10809"), "export": origin.name}


def _url(origin: NetworkOrigin) -> Node:
    return {"driver": origin.protocol, "url": str(origin)}


def _iscsi(origin: NetworkOrigin) -> Node | None:
    target, _, lun = origin.name.rpartition("/")
    if not target or not lun.isdecimal():
        return None
    portal = str(_first(origin))
    return {"driver": "iscsi", "transport": "tcp", "portal": portal, "target": target, "lun": int(lun)}


def _nfs(origin: NetworkOrigin) -> Node:
    return {"driver": "nfs", "server": {"type": "inet", "host": _first(origin).name}, "path": origin.name}


def _gluster(origin: NetworkOrigin) -> Node | None:
    volume, _, path = origin.name.partition("/")
    servers = [_server(host, "24007") for host in origin.hosts]
    return {"driver": "gluster", "volume": volume, "path": path, "server": servers} if path else None


def _rbd(origin: NetworkOrigin) -> Node | None:
    pool, *namespace, image = origin.name.split("/") if "/" in origin.name else ("", "")
    if not (pool and image) or len(namespace) > 1:
        return None
    described: dict[str, Any] = {"driver": "rbd", "pool": pool, "image": image}
    if namespace:
        described["namespace"] = namespace[0]
    if origin.snapshot:
        described["snapshot"] = origin.snapshot
    if origin.config:
        described["conf"] = origin.config
    if origin.hosts:
        described["server"] = [{"host": host.name, "port": host.port or "6789"} for host in origin.hosts]
    return described


_DESCRIBE: Mapping[str, Callable[[NetworkOrigin], Node | None]] = {
    "nbd": _nbd,
    "iscsi": _iscsi,
    "nfs": _nfs,
    "gluster": _gluster,
    "rbd": _rbd,
    **dict.fromkeys(_URL_PROTOCOLS, _url),
}


def _first(origin: NetworkOrigin) -> Host:
    return origin.hosts[0] if origin.hosts else Host()


def _server(host: Host, port: str) -> Node:
    if host.socket:
        return {"type": "unix", "path": host.socket}
    return {"type": "inet", "host": host.name, "port": host.port or port}
