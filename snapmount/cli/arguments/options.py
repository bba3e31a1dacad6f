"""Groups of options that verbs share, or that are long."""

from __future__ import annotations

import argparse
from typing import Any

from ...core.iscsi import ALL_INITIATORS, INITIATORS
from . import values


def disks(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--disk", metavar="NAME", action="append", default=[], help="only this disk, such as vda (repeatable)"
    )
    verb.add_argument(
        "--exclude-disk", metavar="NAME", action="append", default=[], help="all but this disk (repeatable)"
    )


def scratch(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("scratch space", "where QEMU keeps what the guest overwrites meanwhile")
    group.add_argument("--scratch-dir", metavar="DIR", help="below this directory (default: the fastest that suits)")
    group.add_argument(
        "--scratch-limit",
        metavar="SIZE",
        type=values.size,
        help="give the snapshot up when it takes this much, such as 20G",
    )
    group.add_argument(
        "--scratch-reserve", action="store_true", help="allocate it beforehand, so that it cannot run out"
    )
    group.add_argument(
        "--scratch-device",
        metavar="DISK=DEVICE",
        action="append",
        default=[],
        type=values.disk_device,
        help="on an empty block device, for this disk (repeatable)",
    )


def storage(take: argparse.ArgumentParser) -> None:
    group = take.add_argument_group("--source storage", "the VM is paused for a moment, in which its disks are cloned")
    group.add_argument(
        "--storage",
        metavar="DISK=DRIVER",
        action="append",
        default=[],
        type=values.disk_driver,
        help="which driver, or the path of the hook that, clones this disk (repeatable; default: the first that can)",
    )
    group.add_argument(
        "--max-pause",
        metavar="SECONDS",
        type=values.pause,
        help="refuse to pause the VM for longer; 0: take one raw image without a pause (default: 1)",
    )


def iscsi(take: argparse.ArgumentParser) -> None:
    group = take.add_argument_group("iSCSI")
    group.add_argument("--iscsi", action="store_true", help="publish the disks as read-only LUNs")
    group.add_argument(
        "--portal",
        metavar="ADDR[:PORT]",
        action="append",
        default=[],
        help="where to listen (repeatable; default: 127.0.0.1, at the first port from 3260 on that is free)",
    )
    group.add_argument(
        "--initiator", metavar="IQN", action="append", default=[], help="admit only this initiator (repeatable)"
    )
    group.add_argument("--mutual", action="store_true", help="mutual CHAP: the target proves itself too")
    group.add_argument(
        "--secret-file",
        metavar="FILE",
        help="the CHAP secret, 12 to 16 characters on the first line (- for standard input; default: a random one)",
    )
    group.add_argument(
        "--target",
        choices=["auto", "lio", "tgt"],
        default="auto",
        help="the target software: the kernel's, or tgtd (default: the first that works)",
    )
    initiator_kind(group)


def initiator_kind(options: Any) -> None:
    options.add_argument(
        "--for",
        dest="initiator_kind",
        choices=[*INITIATORS, ALL_INITIATORS],
        help="show how this kind of iSCSI initiator logs in (default: linux)",
    )


def changes(take: argparse.ArgumentParser) -> None:
    take.add_argument(
        "--checkpoint",
        metavar="NAME",
        type=values.checkpoint,
        nargs="?",
        const=True,
        help="make a checkpoint at the same moment, from which on a later --since tells what has changed; "
        "--checkpoint=NAME gives it a name",
    )
    take.add_argument(
        "--since",
        metavar="NAME|last",
        type=values.since,
        help="tell what has changed since this checkpoint, or the last one",
    )
    take.add_argument(
        "--backing",
        metavar="DISK=FORMAT:FILE",
        action="append",
        default=[],
        type=values.disk_backing,
        help="with --since: let the qcow2 file of this disk's changes name this backing file (repeatable)",
    )
