"""The command line: the only module that parses arguments, prints or exits."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .core import names
from .errors import NotFoundError, SnapmountError, UsageError

if TYPE_CHECKING:
    from .session import Request
    from .state import Record, Store

EXIT_CODES = """\
exit codes:
  0  done
  1  an internal error
  2  the command line makes no sense
  3  no such VM, disk, snapshot or mountpoint
  4  its state forbids it: the VM is shut off, a backup job runs, the mountpoint is in use
  5  the scratch directory is too small, or QEMU cannot use it
  6  libvirt or QEMU does not answer, or refuses
  7  the host or the guest lacks something: /dev/fuse, fusermount3, the guest agent
  8  something could not be undone; the record is kept for another `snapmount delete`
  130  interrupted before the view was ready; all was undone
"""


class _CannotPrintError(Exception):
    """Nobody reads our standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except SnapmountError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except _CannotPrintError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the interpreter's own last flush
        return 128 + 13  # as if SIGPIPE had ended us


def _run(argv: list[str]) -> int:
    arguments = parse(argv)
    logging.basicConfig(
        level=logging.INFO if getattr(arguments, "verbose", False) else logging.WARNING, format="snapmount: %(message)s"
    )
    command: Any = arguments.command
    return int(command(arguments))


def _complain(error: SnapmountError) -> None:
    print(f"snapmount: {names.printable(error.message)}", file=sys.stderr)
    if error.remedy:
        print(f"  try: {names.printable(error.remedy)}", file=sys.stderr)


def _tell(text: str) -> None:
    print(f"snapmount: {names.printable(text)}", file=sys.stderr)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise _CannotPrintError from None


def _print_json(document: object) -> None:
    _print(json.dumps(document, indent=2) + "\n")


# -- arguments ---------------------------------------------------------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, of which the first word that is no option is the verb, or else the VM of a `take`."""
    parser, verbs = _parser()
    return parser.parse_args(_verb_first(argv, verbs))


def _verb_first(argv: list[str], verbs: dict[str, _Parser]) -> list[str]:
    """Move the verb to the front, or put `take` there: options may stand before it."""
    with_value = {
        option
        for verb in verbs.values()
        for action in verb._actions
        if action.nargs != 0
        for option in action.option_strings
    }
    words = iter(enumerate(argv))
    for position, word in words:
        if word == "--":
            break
        if word in with_value:
            next(words, None)
        elif not word.startswith("-") or word == "-":
            if word in verbs:
                return [word, *argv[:position], *argv[position + 1 :]]
            break
    else:
        if not any(word in ("-h", "--help", "--version") for word in argv) and argv:
            raise UsageError("a VM or a verb is missing", "snapmount --help")
        return argv or ["--help"]
    return ["take", *argv]


class _Parser(argparse.ArgumentParser):
    """Complains as the rest of the command does, and takes no abbreviations, which could be taken for other words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="snapmount",
        usage="snapmount [OPTION...] VM MOUNTPOINT\n       snapmount VERB [OPTION...] [ARGUMENT...]",
        description="Show the disks of a running VM, as they are at this moment, as read-only image files. "
        "The guest goes on writing.",
        epilog=f"`snapmount VERB --help` tells the options of a verb.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"snapmount {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, prog="snapmount")
    acting = _Parser(add_help=False)
    acting.add_argument("-v", "--verbose", action="store_true", help="tell what is being done")
    printing = _Parser(add_help=False)
    printing.add_argument("--json", action="store_true", help="print JSON")
    _add_take(verbs, [acting, printing])

    added = verbs.add_parser("list", parents=[printing], help="list the active snapshots")
    added.set_defaults(command=_list)

    added = verbs.add_parser("show", parents=[printing], help="show all of one snapshot")
    added.add_argument("snapshot", metavar="SNAPSHOT", help="its id, its VM's name, or its mountpoint")
    added.set_defaults(command=_show)

    added = verbs.add_parser("delete", parents=[acting], help="end snapshots and remove all that belongs to them")
    added.add_argument("snapshots", metavar="SNAPSHOT", nargs="+", help="its id, its VM's name, or its mountpoint")
    added.set_defaults(command=_delete)

    added = verbs.add_parser("umount", parents=[acting], help="the same, by the mountpoint")
    added.add_argument("mountpoint", metavar="MOUNTPOINT")
    added.set_defaults(command=_umount)
    return parser, verbs.choices


def _add_take(verbs: Any, parents: list[_Parser]) -> None:
    take = verbs.add_parser(
        "take",
        parents=parents,
        help="take a snapshot of a running VM and mount it; the word may be left out",
        description="Take a snapshot of a running VM and mount it. Returns when the view is readable; "
        "a background process serves it.",
    )
    take.add_argument("vm", metavar="VM", help="name or uuid of a running VM")
    take.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    take.add_argument("-c", "--connect", metavar="URI", help="libvirt connection (default: as virsh)")
    take.add_argument(
        "--disk", metavar="NAME", action="append", default=[], help="only this disk, such as vda (repeatable)"
    )
    take.add_argument(
        "--exclude-disk", metavar="NAME", action="append", default=[], help="all but this disk (repeatable)"
    )
    take.add_argument("--scratch-dir", metavar="DIR", help="where QEMU keeps what the guest overwrites")
    take.add_argument(
        "--quiesce", action="store_true", help="freeze the guest's file systems at that moment (guest agent)"
    )
    take.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=30.0,
        help="a read that QEMU does not answer fails then (default: 30)",
    )
    take.add_argument(
        "--foreground", action="store_true", help="serve the view in this process, until Ctrl-C or an unmount"
    )
    take.set_defaults(command=_take)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


# -- commands ----------------------------------------------------------------------------------------------------------
# The modules behind a command are imported when it runs: `list` needs neither libvirt nor FUSE.


def _take(arguments: argparse.Namespace) -> int:
    from . import background, present

    request, store = _request(arguments), _store()
    if arguments.foreground:
        return _take_in_foreground(request, store, arguments)
    snapshot_id = background.start(request, store, arguments.verbose, _tell)
    record = store.load(snapshot_id)
    if record is None:
        raise SnapmountError(f"snapshot {snapshot_id} has been ended already, by somebody else")
    if arguments.json:
        _print_json(present.document(record, store))
    else:
        _print(present.taken(record, store))
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    from . import hypervisor
    from .session import Request

    _check_utf_8(arguments.scratch_dir or "", "the scratch directory")
    uri = arguments.connect or hypervisor.default_uri()
    hypervisor.check_uri(uri)
    return Request(
        vm=arguments.vm,
        mountpoint=os.path.abspath(arguments.mountpoint),
        connect=uri,
        only=tuple(arguments.disk),
        exclude=tuple(arguments.exclude_disk),
        scratch_dir=arguments.scratch_dir and os.path.abspath(arguments.scratch_dir),
        quiesce=arguments.quiesce,
        read_timeout_s=arguments.read_timeout,
    )


def _check_utf_8(path: str, what: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {path} has a name that is not UTF-8, which libvirt insists on") from None


def _take_in_foreground(request: Request, store: Store, arguments: argparse.Namespace) -> int:
    import trio

    from . import session

    trio.run(session.run, request, store, _ForegroundReporter(store, arguments.json))
    return 0


class _ForegroundReporter:
    """Prints what a session tells."""

    def __init__(self, store: Store, as_json: bool) -> None:
        self._store = store
        self._as_json = as_json

    def warn(self, text: str) -> None:
        _tell(f"warning: {text}")

    def claimed(self, record: Record) -> None:
        pass

    def ready(self, record: Record) -> None:
        from . import present

        if self._as_json:
            _print_json(present.document(record, self._store))
        else:
            _print(present.taken(record, self._store))

    async def wait_abandoned(self) -> None:
        import trio

        await trio.sleep_forever()


def _store() -> Store:
    from .state import Store

    return Store.of_user()


def _list(arguments: argparse.Namespace) -> int:
    from . import present

    store = _store()
    records, broken = store.load_all()
    if arguments.json:
        _print_json([present.document(record, store) for record in records])
    elif records:
        _print(present.listing(records, store))
    elif sys.stdout.isatty():
        _print("no snapshots\n")
    for error in broken:
        _complain(error)
    return broken[0].exit_code if broken else 0


def _show(arguments: argparse.Namespace) -> int:
    from . import present

    store = _store()
    record = store.find(arguments.snapshot)
    if arguments.json:
        _print_json(present.document(record, store))
    else:
        _print(present.details(record, store))
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    store = _store()
    failed = 0
    for word in arguments.snapshots:
        try:
            _end(store, store.find(word))
        except SnapmountError as error:
            _complain(error)
            failed = failed or error.exit_code
    return failed


def _umount(arguments: argparse.Namespace) -> int:
    store = _store()
    path = os.path.realpath(arguments.mountpoint)
    records, _ = store.load_all()
    for record in records:
        if record.mountpoint == path:
            _end(store, record)
            return 0
    raise NotFoundError(f"no snapshot is mounted at {arguments.mountpoint}", "snapmount list")


def _end(store: Store, record: Record) -> None:
    import trio

    from . import ending
    from .errors import first_cause

    try:
        trio.run(ending.end, store, record)
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
