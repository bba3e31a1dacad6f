"""The command line: what each verb does."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from . import logs, output, signals
from .arguments import doing, parse
from .core import names
from .errors import (
    InterruptedByUserError,
    MissingError,
    NotFoundError,
    SnapmountError,
    StateError,
    UsageError,
)

if TYPE_CHECKING:
    import argparse

    from .core.iscsi import Session
    from .ending import Ended
    from .planning import Request
    from .records import Record
    from .state import Store

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except SnapmountError as error:
        if error.message:  # a reader that has gone away wants to know nothing
            output.complain(error)
        return error.exit_code
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.startswith("snapmount"):
            raise
        remedy = names.command(sys.executable, "-m", "pip", "install", name)
        output.complain(MissingError(f"the Python module {name} is missing", remedy))
        return MissingError.exit_code


def _run(argv: list[str]) -> int:
    with output.writing():  # --help
        arguments = parse(argv)
    level = logging.INFO if getattr(arguments, "verbose", False) else logging.WARNING
    logs.log_to(output.progress, level, "snapmount: %(message)s")
    with output.progress.shown("" if _is_quiet(arguments) else doing(arguments)):
        return _COMMANDS[arguments.verb](arguments)


def _is_quiet(arguments: argparse.Namespace) -> bool:
    """Whether nothing is to be shown on a terminal while the command works."""
    is_piped = getattr(arguments, "json", False) and not sys.stdout.isatty()
    return is_piped or getattr(arguments, "foreground", False)


# -- commands ----------------------------------------------------------------------------------------------------------
# The modules behind a command are imported when it runs: `list` needs neither libvirt nor FUSE.


def _take(arguments: argparse.Namespace) -> int:
    from . import foreground, requesting

    request, store = requesting.take(arguments), _store()
    if arguments.foreground:
        not_told: list[SnapmountError] = []

        def show(taken: Record) -> None:
            with output.going_on(not_told):
                _print_taken(taken, store, arguments)

        foreground.serve(request, store, foreground.Reporter(store, show, output.tell), output.tell)
        return not_told[0].exit_code if not_told else 0
    from . import recovering

    _revive(recovering.dead(store, arguments.vm), store, arguments.verbose)
    _print_taken(_taken(request, store, arguments.verbose), store, arguments)
    return 0


def _taken(request: Request, store: Store, verbose: bool) -> Record:
    """Take a snapshot, and leave it to a background process."""
    from . import background, ending, interruptible, taking

    started = background.start(partial(taking.taken, request, store), store, verbose, output.tell)
    record = store.load(started.id)
    if record is None:
        raise SnapmountError(f"snapshot {started.id} has been ended already, by somebody else")
    if started.is_unwanted:
        interruptible.finish(ending.end, store, record, True)
        raise InterruptedByUserError("interrupted; nothing was left behind")
    return record


def _print_taken(record: Record, store: Store, arguments: argparse.Namespace) -> None:
    from . import present

    shown = present.Shown(
        record, store, with_secret=True, initiator_kind=arguments.initiator_kind, expire_s=arguments.expire
    )
    there = (f"snapshot {record.id} of {record.snapshot.vm_name} is there", _to_see(record))
    output.print_either(arguments.json, shown.document, shown.taken, *there)


def _to_see(record: Record) -> str:
    """For who has not been told of the snapshot."""
    show, delete = (names.command("snapmount", verb, record.id) for verb in ("show", "delete"))
    return f"{show}   (to end it: {delete})"


def _revive(records: Sequence[Record], store: Store, verbose: bool) -> None:
    """Recover those whose server has died; say on standard error what has become of each."""
    from . import recovering

    for record in records:
        if recovering.is_dead(record, store):
            output.tell(str(recovering.recover(record, store, verbose, output.tell)))


def _boot(arguments: argparse.Namespace) -> int:
    from . import boot, interruptible, present, requesting

    if arguments.console and not shutil.which("virsh"):
        raise MissingError("virsh is missing, which --console needs", "sudo apt-get install libvirt-clients")
    request, store = requesting.boot(arguments), _store()
    _revive(store.meant(arguments.source), store, arguments.verbose)
    record = _active(arguments.source, store)
    if record and not record.is_meant_by(arguments.source) and _is_vm(arguments):
        record = None  # it has the name of which the snapshot's id has the beginning only
    is_taken_now = record is None
    if record and any(value for name, value in vars(arguments).items() if name.startswith("scratch_")):
        raise UsageError(
            f"snapshot {record.id} is there already: its scratch space stays as it is", "no --scratch options"
        )
    if record and (arguments.disk or arguments.exclude_disk):
        raise UsageError(f"snapshot {record.id} is there already: its disks stay as they are", "no --disk options")
    if record and arguments.connect not in (None, record.connect):
        raise UsageError(f"snapshot {record.id} is at {record.connect}, not at {arguments.connect}", "no --connect")
    record = record or _take_to_boot(arguments, store)
    try:
        vm, came = interruptible.run(boot.run, request, record, store)
    except BaseException as error:
        if is_taken_now:
            _end_unless_used(store, record, error)
        raise
    there = (f"scratch VM {vm.name} runs on snapshot {record.id}", _to_see(record))
    document = vm.document() | {"snapshot": record.id, "came_after_s": came and round(came.after_s, 1)}
    output.print_either(arguments.json, lambda: document, partial(present.booted, vm, record, came), *there)
    if arguments.console:
        output.progress.end()
        signals.let_end()
        os.execvp("virsh", ["virsh", "-c", record.connect, "console", "--", vm.name])
    return 0


def _is_vm(arguments: argparse.Namespace) -> bool:
    from . import boot, hypervisor, interruptible

    return interruptible.run(boot.is_vm, arguments.source, arguments.connect or hypervisor.default_uri())


def _active(word: str, store: Store, connect: str | None = None) -> Record | None:
    try:
        return store.find(word, connect)
    except NotFoundError:
        return None


def _take_to_boot(arguments: argparse.Namespace, store: Store) -> Record:
    """Take a snapshot that ends with its last scratch VM."""
    from . import requesting

    return _taken(requesting.take_to_boot(arguments), store, arguments.verbose)


def _end_unless_used(store: Store, record: Record, failure: BaseException) -> None:
    """End the snapshot after something has failed, unless the scratch VM runs on.  Raises SnapmountError where that
    cannot be, when the failure has been told.
    """
    from . import ending, interruptible

    try:
        interruptible.finish(ending.end, store, record, False)
    except StateError:
        pass
    except SnapmountError:
        if isinstance(failure, SnapmountError):
            output.complain(failure)
        raise


def _attach(arguments: argparse.Namespace) -> int:
    from . import attaching, interruptible, present

    store = _store()
    _revive(store.meant(arguments.snapshot), store, arguments.verbose)
    record = _active(arguments.snapshot, store, _connection(arguments))
    if record is None:
        take = names.command("snapmount", arguments.snapshot, "MOUNTPOINT")
        raise NotFoundError(f"there is no snapshot {arguments.snapshot!r} to attach", f"{take}   (to take one first)")
    request = attaching.AttachRequest(arguments.helper, tuple(arguments.disk), arguments.bus)
    made = interruptible.run(attaching.attach, request, record, store)
    helper = made[0].vm_name
    detach = names.command("snapmount", "detach", record.id, helper)
    there = (f"disks of snapshot {record.id} are attached to {helper}", detach)
    document = {"snapshot": record.id, "attachments": [each.document() for each in made]}
    output.print_either(arguments.json, lambda: document, partial(present.attached, made, record), *there)
    return 0


def _detach(arguments: argparse.Namespace) -> int:
    from . import attaching, interruptible, outcomes

    store = _store()
    record = store.find(arguments.snapshot, _connection(arguments))
    detach = partial(attaching.detach, record, store, arguments.helper, arguments.disk, arguments.wait_timeout)
    unplugged = interruptible.run(detach)
    if arguments.json:
        output.print_json({"snapshot": record.id, "detached": [each.document() for each in unplugged]})
    else:
        output.print_text(outcomes.detached_text(unplugged, record))
    return 0


def _store() -> Store:
    from .sources import kinds
    from .state import Store

    return Store.of_user(kinds.check)


def _connection(arguments: argparse.Namespace) -> str | None:
    """Where the VMs are whose snapshots are meant; None: anywhere.  Raises UsageError."""
    connect: str | None = arguments.connect
    if connect is not None:
        from . import hypervisor

        hypervisor.check_uri(connect)
    return connect


def _list(arguments: argparse.Namespace) -> int:
    from . import present

    store, connect = _store(), _connection(arguments)
    records, broken = store.load_all()
    records = [record for record in records if connect in (None, record.connect)]
    sessions = _sessions(records, store)
    snapshots = [present.Shown(record, store, sessions[record.id]) for record in records]
    if arguments.json:
        output.print_json([shown.document() for shown in snapshots])
    elif snapshots:
        output.print_text(present.listing(snapshots))
    elif sys.stdout.isatty():
        output.print_text("no snapshots\n")
    return output.complain_all([*broken, *(error for shown in snapshots for error in shown.faults())])


def _show(arguments: argparse.Namespace) -> int:
    from . import present
    from .core.lifecycle import State

    store = _store()
    record = store.find(arguments.snapshot, _connection(arguments))
    if store.state(record) is State.DEAD:
        from . import recovering

        record = recovering.alive(record, store, output.tell)
    if arguments.initiator_kind and not record.publication:
        raise UsageError(f"snapshot {record.id} is not published over iSCSI", "no --for")
    sessions = _sessions([record], store)[record.id]
    shown = present.Shown(record, store, sessions, arguments.show_secret, arguments.initiator_kind)
    output.print_either(arguments.json, shown.document, shown.details)
    return output.complain_all(shown.faults())


def _sessions(records: Sequence[Record], store: Store) -> dict[str, list[Session] | None]:
    """Who is logged in to each; None where there is nothing to log in to, or nobody tells."""
    if not any(record.publication for record in records):
        return dict.fromkeys((record.id for record in records), None)
    from . import interruptible, luns

    return interruptible.run(luns.sessions, records, store)


def _delete(arguments: argparse.Namespace) -> int:
    from . import outcomes

    store, connect = _store(), _connection(arguments)
    failed, documents = 0, []
    not_told: list[SnapmountError] = []
    for word in arguments.snapshots:
        record = None
        try:
            record = store.find(word, connect)
            ended = _end(store, record, arguments.force)
        except InterruptedByUserError:
            raise
        except SnapmountError as error:
            output.complain(error)
            failed = failed or error.exit_code
            documents += [outcomes.ended_document(record)] if record else []
            continue
        documents.append(outcomes.ended_document(ended))
        with output.going_on(not_told):
            output.print_text("" if arguments.json or not_told else outcomes.ended_text(ended))
    if arguments.json:
        output.print_json(documents)
    return failed or (not_told[0].exit_code if not_told else 0)


def _recover(arguments: argparse.Namespace) -> int:
    from . import recovering

    store = _store()
    done = recovering.recover_all(arguments.snapshots, store, arguments.verbose, output.tell)
    not_told: list[SnapmountError] = []
    with output.going_on(not_told):
        nothing = "" if done.errors else "nothing to recover\n"
        output.print_either(arguments.json, partial(done.document, store), lambda: done.text() or nothing)
    for line in done.text().splitlines() if not_told else ():
        output.tell(line)
    return output.complain_all(done.errors) or (not_told[0].exit_code if not_told else 0)


def _umount(arguments: argparse.Namespace) -> int:
    from . import ending, outcomes

    store = _store()
    record = ending.mounted_at(arguments.mountpoint, store)
    unmount = partial(ending.unmount, store, record, force=arguments.force, lazy=arguments.lazy)
    ended = _ending(store, record, unmount)
    output.print_either(arguments.json, partial(outcomes.ended_document, ended), partial(outcomes.ended_text, ended))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor, interruptible
    from .core import health

    names.check_utf_8(arguments.scratch_dir or "", "the scratch directory")
    subject = doctor.Subject.here(arguments.connect, arguments.scratch_dir and os.path.abspath(arguments.scratch_dir))
    connect = doctor.uri(subject)
    findings = interruptible.run(doctor.examine, subject)
    output.print_either(arguments.json, partial(health.document, findings, connect), partial(health.text, findings))
    return MissingError.exit_code if health.verdict(findings) is health.Status.PROBLEM else 0


def _end(store: Store, record: Record, force: bool) -> Ended:
    from . import ending

    return _ending(store, record, partial(ending.end, store, record, force))


def _ending(store: Store, record: Record, end: Callable[[], Awaitable[T]]) -> T | Ended:
    """What end() returns, which ends the snapshot."""
    from . import ending, interruptible

    try:
        return interruptible.run(end)
    except InterruptedByUserError:
        if store.load(record.id) is not None:
            again = names.command("snapmount", "delete", record.id)
            raise InterruptedByUserError(f"interrupted before snapshot {record.id} had ended", again) from None
        signals.put_back()  # it has just ended; what comes next must not begin
        return ending.Ended(record)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "take": _take,
    "boot": _boot,
    "attach": _attach,
    "detach": _detach,
    "list": _list,
    "show": _show,
    "delete": _delete,
    "recover": _recover,
    "umount": _umount,
    "doctor": _doctor,
}
