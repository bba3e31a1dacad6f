"""What a command line asks for, as the requests that planning.py and launch.py take; names and values are checked."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from .. import hypervisor
from ..boot.check import WAIT_TIMEOUT_S, WaitFor
from ..boot.launch import BootRequest, check_name
from ..core import names, publishing, uris
from ..errors import UsageError
from ..host.processes import Process
from ..lifecycle.planning import LunRequest, Request
from ..sources.pull.planning import ScratchOptions
from ..sources.pull.space import ScratchPolicy
from ..sources.pull.state import KIND as PULL
from ..sources.storage.choice import DEFAULT_MAX_PAUSE_S, StorageOptions
from ..sources.storage.state import KIND as STORAGE

if TYPE_CHECKING:
    import argparse


def take(arguments: argparse.Namespace) -> Request:
    """What `take` asks for.  Raises UsageError."""
    uri = _uri(arguments)
    return Request(
        vm=arguments.vm,
        mountpoint=arguments.mountpoint and os.path.abspath(arguments.mountpoint),
        connect=uri,
        luns=_luns(arguments, uri) if arguments.iscsi else None,
        expire_s=arguments.expire,
        **_disks(arguments),
        source=_source(arguments),
        quiesce=arguments.quiesce,
        checkpoint="" if arguments.checkpoint is True else arguments.checkpoint,
        since=arguments.since,
        backing=dict(arguments.backing),
        allow_other=arguments.allow_other,
        read_timeout_s=arguments.read_timeout,
        cluster_bytes=arguments.cluster_size,
        verbs_meant=tuple(arguments.verbs_meant),
        options=_scratch(arguments) | _storage(arguments),
    )


def take_to_boot(arguments: argparse.Namespace) -> Request:
    """The snapshot that `boot` takes, which ends with its last scratch VM.  Raises UsageError."""
    booting = Process.of_pid(os.getpid())
    of_disks, of_scratch = _disks(arguments), _scratch(arguments)
    return Request(arguments.source, None, _uri(arguments), booting=booting, **of_disks, options=of_scratch)


def look(arguments: argparse.Namespace) -> Request:
    """The snapshot that `doctor VM` thinks of.  Raises UsageError."""
    directory = arguments.scratch_dir
    names.check_utf_8(directory or "", "the scratch directory")
    options = {PULL: ScratchOptions(directory and os.path.abspath(directory))}
    return Request(arguments.vm, None, _uri(arguments), options=options)


def boot(arguments: argparse.Namespace) -> BootRequest:
    """The scratch VM that `boot` asks for.  Raises UsageError."""
    names.check_utf_8(arguments.overlay_dir or "", "the overlay directory")  # before a snapshot is taken
    if arguments.console and not sys.stdin.isatty():
        raise UsageError("--console needs a terminal as standard input", "no --console")
    return BootRequest(
        name=None if arguments.name is None else check_name(arguments.name),
        memory_kib=arguments.memory,
        vcpus=arguments.vcpus,
        network=arguments.network,
        overlay_dir=arguments.overlay_dir and os.path.abspath(arguments.overlay_dir),
        is_kept=arguments.keep,
        wait_for=None if arguments.wait_for is None else WaitFor.parse(arguments.wait_for),
        wait_timeout_s=arguments.wait_timeout or WAIT_TIMEOUT_S,
        console=arguments.console,
    )


def _uri(arguments: argparse.Namespace) -> str:
    uri: str = arguments.connect or hypervisor.default_uri()
    uris.check(uri)
    return uri


def _disks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a Request, which disks are asked for."""
    return {"only": tuple(arguments.disk), "exclude": tuple(arguments.exclude_disk)}


def _scratch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a Request's options, what is asked for scratch space."""
    directory, devices = arguments.scratch_dir, tuple(arguments.scratch_device)
    names.check_utf_8(directory or "", "the scratch directory")
    for _, device in devices:
        names.check_utf_8(device, "the scratch device")
    policy = ScratchPolicy(arguments.scratch_limit, arguments.scratch_reserve, devices)
    return {PULL: ScratchOptions(directory and os.path.abspath(directory), policy)}


def _source(arguments: argparse.Namespace) -> str | None:
    """Which source is asked for, by its name or by what only one has.  Raises UsageError."""
    wanted: str = arguments.source
    asked = [option for option, value in _of_storage(arguments).items() if value]
    if wanted not in ("auto", STORAGE) and asked:
        raise UsageError(f"{asked[0]} is for --source storage, not for --source {wanted}", "--source storage")
    if asked:
        return STORAGE
    return None if wanted == "auto" else wanted


def _of_storage(arguments: argparse.Namespace) -> dict[str, bool]:
    return {"--storage": bool(arguments.storage), "--max-pause": arguments.max_pause is not None}


def _storage(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a Request's options, what is asked of storage."""
    for _, driver in arguments.storage:
        names.check_utf_8(driver, "the storage driver")
    max_pause_s = DEFAULT_MAX_PAUSE_S if arguments.max_pause is None else arguments.max_pause
    return {STORAGE: StorageOptions(tuple(arguments.storage), max_pause_s)}


def _luns(arguments: argparse.Namespace, uri: str) -> LunRequest:
    """How to publish.  Raises UsageError."""
    if os.geteuid() != 0:
        if uris.is_unprivileged(uri):  # those that root finds there are root's own
            remedy = f"{names.command('snapmount', arguments.vm, 'MOUNTPOINT')}   (its files instead)"
            raise UsageError(f"only root can publish over iSCSI, and no VM at {uri}, which are a user's own", remedy)
        remedy = names.command("sudo", "snapmount", "--iscsi", "--connect", uri, arguments.vm)
        raise UsageError("only root can publish over iSCSI", remedy)
    return LunRequest(
        backend=arguments.target,
        portals=publishing.parse_portals(arguments.portal),
        initiators=tuple(dict.fromkeys(map(publishing.check_initiator, arguments.initiator))),
        mutual=arguments.mutual,
        secret=_secret(arguments.secret_file) if arguments.secret_file else None,
    )


def _secret(path: str) -> str:
    try:
        with sys.stdin if path == "-" else open(path, encoding="utf-8", errors="replace") as f:  # noqa: PTH123
            return publishing.check_secret(f.readline().rstrip("\n"))
    except OSError as error:
        raise UsageError(f"the secret cannot be read from {path}: {error.strerror}") from None
    except UsageError as error:
        raise UsageError(f"--secret-file {path}: {error.message}", error.remedy) from None
