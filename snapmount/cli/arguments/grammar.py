"""The verbs of the command line and their options, and what `--help` says."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NoReturn

from ... import __version__
from ...core.helperdisk import PREFIXES
from ...errors import UsageError
from ...sources import kinds
from . import options, values

EXIT_CODES = """\
exit codes:
  0  done
  1  an internal error
  2  the command line makes no sense
  3  no such VM, disk, snapshot or mountpoint
  4  its state forbids it: a backup job runs, the VM's images are in use, the mountpoint or a LUN is in use, a guest
     does not let go of a disk
  5  the scratch directory is too small, or QEMU cannot use it; or there is too little space for what the guest writes
  6  libvirt or QEMU does not answer, or refuses
  7  the host or the guest lacks something: /dev/fuse, an iSCSI target, the guest agent; doctor has found a problem
  8  something could not be undone; the record is kept for another `snapmount delete`
  9  the scratch VM was started, but what --wait-for waits for has not come
  10  standard output cannot be written; what was asked for has been done, and standard error says what is there
  130  interrupted, by Ctrl-C or SIGTERM; what the command had begun to make was undone
  141  nobody read standard output, a pipe; what was asked for has been done
"""

HELP = "help"
_SNAPSHOT = "its id or the beginning of that, its VM's name, or its mountpoint"


@dataclass(frozen=True)
class Form:
    """How an option is given."""

    long: str  # its name of two dashes
    metavar: str | None  # what its value is called; None: it takes none
    may_lack_value: bool = False  # one is given as --NAME=VALUE only: the next word is none

    @property
    def takes_value(self) -> bool:
        """Whether the next word is its value."""
        return self.metavar is not None and not self.may_lack_value


@dataclass(frozen=True)
class Word:
    """A word that is no option."""

    name: str  # as the usage shows it
    is_needed: bool
    may_be_several: bool


class Parser(argparse.ArgumentParser):
    """Complains as the rest of the command does, and takes no abbreviations, which could be taken for other words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")

    def options(self) -> dict[str, Form]:
        """The options by each of their names."""
        return {
            name: Form(action.option_strings[-1], None if action.nargs == 0 else _metavar(action), action.nargs == "?")
            for action in self._actions
            for name in action.option_strings
        }

    def words(self) -> list[Word]:
        """The other words that it takes."""
        return [
            Word(_metavar(action), action.nargs in (None, "+"), action.nargs in ("*", "+"))
            for action in self._actions
            if not action.option_strings
        ]

    @property
    def verb(self) -> str:
        """The verb that it is for."""
        return str(self.get_default("verb"))


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or "|".join(action.choices or ()) or action.dest.upper())


def parser() -> tuple[Parser, dict[str, Parser]]:
    main = Parser(
        prog="snapmount",
        usage="snapmount [OPTION...] VM MOUNTPOINT\n       snapmount --iscsi [OPTION...] VM [MOUNTPOINT]\n"
        "       snapmount VERB [OPTION...] [ARGUMENT...]",
        description="Show the disks of a VM, as they are at this moment, as read-only image files or iSCSI LUNs. "
        "The guest of a running one goes on writing.",
        epilog=f"`snapmount VERB --help` tells the options of a verb.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="version", version=f"snapmount {__version__}")
    verbs = main.add_subparsers(title="verbs", metavar="VERB", required=True, prog="snapmount")
    acting = Parser(add_help=False)
    acting.add_argument("-v", "--verbose", action="store_true", help="tell what is being done")
    printing = Parser(add_help=False)
    printing.add_argument("--json", action="store_true", help="print JSON")
    _add_take(verbs, [acting, printing])
    _add_boot(verbs, [acting, printing])
    _add_checkpoints(verbs, [acting, printing])
    _add_attach(verbs, [acting, printing, _choosing()])
    _add_detach(verbs, [acting, printing, _choosing()])
    _add_looking(verbs, [printing, _choosing()])
    _add_ending(verbs, [acting, printing])

    added = verbs.add_parser(
        "recover",
        parents=[acting, printing],
        help="re-attach snapshots whose server process has died, or clean up after them",
        description="Re-attach the dead snapshots, or those that are named: the same point in time, mountpoint and "
        "LUNs. What cannot be re-attached is removed; where none is named, also what a crash or a restart of the host "
        "has left behind.",
    )
    added.add_argument("snapshots", metavar="SNAPSHOT", nargs="*", help=_SNAPSHOT)
    added.set_defaults(verb="recover")

    added = verbs.add_parser("doctor", parents=[printing], help="say what this host lacks, or how a VM can be taken")
    added.add_argument("vm", metavar="VM", nargs="?", help="tell which sources serve its disks, and at what cost")
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt connection (default: as virsh)")
    added.add_argument("--scratch-dir", metavar="DIR", help="look at this place for scratch files too")
    added.set_defaults(verb="doctor")

    added = verbs.add_parser(HELP, help="tell the options of a verb, or what verbs there are")
    added.add_argument("about", metavar="VERB", nargs="?")
    added.set_defaults(verb=HELP)
    return main, verbs.choices


def _choosing() -> Parser:
    """For verbs that act on snapshots there are."""
    choosing = Parser(add_help=False)
    choosing.add_argument(
        "-c", "--connect", metavar="URI", help="only snapshots of VMs at this libvirt connection (default: at any)"
    )
    return choosing


def _add_looking(verbs: Any, parents: list[Parser]) -> None:
    added = verbs.add_parser("list", aliases=["ls"], parents=parents, help="list the active snapshots")
    added.set_defaults(verb="list")

    added = verbs.add_parser("show", parents=parents, help="show all of one snapshot")
    added.add_argument("snapshot", metavar="SNAPSHOT", help=_SNAPSHOT)
    added.add_argument("--show-secret", action="store_true", help="show the secret of its iSCSI target too")
    options.initiator_kind(added)
    added.set_defaults(verb="show")

    added = verbs.add_parser(
        "dirty",
        parents=parents,
        help="print which extents of a snapshot's disks are dirty",
        description="Print the dirty extents of a snapshot's disks, one a line: the disk, where it begins, its length "
        "in bytes, and whether it is data or reads as zeros. All of a disk is dirty if it is not known what has "
        "changed.",
    )
    added.add_argument("snapshot", metavar="SNAPSHOT", help=_SNAPSHOT)
    added.add_argument("--disk", metavar="NAME", action="append", default=[], help="only this disk (repeatable)")
    added.add_argument("--data", action="store_true", help="print the bytes too, for a program that reads them")
    added.set_defaults(verb="dirty")


def _add_ending(verbs: Any, parents: list[Parser]) -> None:
    added = verbs.add_parser(
        "delete",
        aliases=["rm"],
        parents=[*parents, _choosing()],
        help="end snapshots and remove all that belongs to them",
    )
    added.add_argument("snapshots", metavar="SNAPSHOT", nargs="+", help=_SNAPSHOT)
    added.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="also while scratch VMs run on it, VMs have its disks, or iSCSI initiators are logged in",
    )
    added.add_argument(
        "--discard-checkpoint",
        action="store_true",
        help="remove the checkpoint that was made with it too: what was read of it does not count",
    )
    added.set_defaults(verb="delete")

    added = verbs.add_parser(
        "umount",
        parents=parents,
        help="the same, by the mountpoint, and not while programs use it",
        description="End the snapshot that is mounted there, and remove all that belongs to it.",
    )
    added.add_argument("mountpoint", metavar="MOUNTPOINT")
    how = added.add_mutually_exclusive_group()
    how.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="also while programs use it, scratch VMs run on it, VMs have its disks, or iSCSI initiators are logged in",
    )
    how.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="where programs use it, take it away from the mountpoint now, and end it when they have closed its files",
    )
    added.set_defaults(verb="umount")


def _add_take(verbs: Any, parents: list[Parser]) -> None:
    take = verbs.add_parser(
        "take",
        parents=parents,
        help="take a snapshot of a VM and mount or publish it; the word may be left out",
        description="Take a snapshot of a VM and mount it, publish it over iSCSI, or both. Returns when the "
        "view is readable; a background process serves it.",
    )
    take.add_argument("vm", metavar="VM", help="name or uuid of a VM")
    take.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="an empty directory; with --iscsi optional")
    take.add_argument("-c", "--connect", metavar="URI", help="libvirt connection (default: as virsh)")
    options.disks(take)
    take.add_argument(
        "--source",
        choices=["auto", *kinds.STATES],
        default="auto",
        help="how to take it: by a backup job of the running VM (pull), from the images of one that is shut off "
        "(offline), or by what its disks are stored on (storage); default: pull or offline, as the VM is",
    )
    take.add_argument(
        "--quiesce", action="store_true", help="freeze the guest's file systems at that moment (guest agent)"
    )
    options.changes(take)
    take.add_argument("--allow-other", action="store_true", help="let every user of this host read the files")
    take.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=values.seconds,
        default=30.0,
        help="a read that QEMU does not answer fails then (default: 30)",
    )
    take.add_argument(
        "--cluster-size",
        metavar="SIZE",
        type=values.cluster_size,
        help="of the qcow2 files in the mount, from 4K to 2M (default: 64K; 2M for disks of more than 16 TiB)",
    )
    take.add_argument(
        "--foreground", action="store_true", help="serve the view in this process, until Ctrl-C or an unmount"
    )
    take.add_argument(
        "--expire", metavar="TIME", type=values.duration, help="end the snapshot after this time: 90s, 15m, 2h, 1d"
    )
    options.scratch(take)
    options.storage(take)
    options.iscsi(take)
    take.set_defaults(verb="take")


def _add_checkpoints(verbs: Any, parents: list[Parser]) -> None:
    added = verbs.add_parser(
        "checkpoints",
        parents=parents,
        help="list the checkpoints of a VM, or remove some",
        description="List the moments of a VM since which it is known what its disks have changed, or remove some of "
        "them. Checkpoints that other programs have made are neither listed nor removed.",
    )
    added.add_argument("vm", metavar="VM", help="name or uuid of a VM")
    added.add_argument("-c", "--connect", metavar="URI", help="libvirt connection (default: as virsh)")
    which = added.add_mutually_exclusive_group()
    which.add_argument("--delete", metavar="NAME", action="append", default=[], help="remove this one (repeatable)")
    which.add_argument("--keep", metavar="N", type=values.whole, help="remove all but the newest N")
    added.set_defaults(verb="checkpoints")


def _add_boot(verbs: Any, parents: list[Parser]) -> None:
    boot = verbs.add_parser(
        "boot",
        parents=parents,
        help="boot a scratch VM: a throw-away copy, on a snapshot",
        description="Boot a throw-away copy of a VM on an active snapshot, or else on one that is taken now and ends "
        "with its last scratch VM. What it writes goes into overlays, which are removed when it ends.",
    )
    boot.add_argument("source", metavar="VM-OR-SNAPSHOT", help="a snapshot's id, VM or mountpoint; else a VM")
    boot.add_argument("-c", "--connect", metavar="URI", help="libvirt connection, where a snapshot is taken")
    options.disks(boot)
    boot.add_argument("--name", metavar="NAME", help="the scratch VM's name (default: VM-scratch- and four digits)")
    boot.add_argument(
        "--memory", metavar="SIZE", type=values.memory, help="such as 512M or 2G (default: as the original's)"
    )
    boot.add_argument("--vcpus", metavar="N", type=values.count, help="number of processors (default: the original's)")
    boot.add_argument(
        "--network",
        metavar="none|isolated|NAME",
        default="none",
        help="no network interfaces; interfaces without a link; or a network of libvirt (default: none)",
    )
    boot.add_argument("--overlay-dir", metavar="DIR", help="where to keep what it writes")
    boot.add_argument("--keep", action="store_true", help="define it persistently, and keep its overlays")
    boot.add_argument(
        "--wait-for",
        metavar="agent|REGEX|TIME",
        help="return when its guest agent answers, its console shows this, or it still runs after this time",
    )
    boot.add_argument(
        "--wait-timeout", metavar="TIME", type=values.duration, help="how long to wait for that (default: 5m)"
    )
    boot.add_argument("--console", action="store_true", help="then connect to its console, with virsh")
    options.scratch(boot)
    boot.set_defaults(verb="boot")


def _add_attach(verbs: Any, parents: list[Parser]) -> None:
    attach = verbs.add_parser(
        "attach",
        parents=parents,
        help="plug a snapshot's disks, read-only, into another VM that runs",
        description="Plug the disks of a snapshot, read-only, into another VM that runs, its helper: all of them, or "
        "none. They are there until they are detached or the helper ends, and not in its persistent definition.",
    )
    attach.add_argument("snapshot", metavar="SNAPSHOT", help=_SNAPSHOT)
    attach.add_argument("helper", metavar="HELPER-VM", help="name or uuid of a running VM, another than the snapshot's")
    attach.add_argument("--disk", metavar="NAME", action="append", default=[], help="only this disk (repeatable)")
    attach.add_argument(
        "--bus", choices=list(PREFIXES), default="virtio", help="what the helper sees it on (default: virtio)"
    )
    attach.set_defaults(verb="attach")


def _add_detach(verbs: Any, parents: list[Parser]) -> None:
    detach = verbs.add_parser(
        "detach",
        parents=parents,
        help="unplug a snapshot's disks from the VMs that they are attached to",
        description="Unplug disks of a snapshot from one VM, or from all that they are attached to, and wait until the "
        "guests have let go of them.",
    )
    detach.add_argument("snapshot", metavar="SNAPSHOT", help=_SNAPSHOT)
    detach.add_argument("helper", metavar="HELPER-VM", nargs="?", help="only from this VM")
    detach.add_argument("--disk", metavar="NAME", action="append", default=[], help="only this disk (repeatable)")
    detach.add_argument(
        "--wait-timeout",
        metavar="TIME",
        type=values.duration,
        default=30.0,
        help="how long the guest may take to let go (default: 30s)",
    )
    detach.set_defaults(verb="detach")
