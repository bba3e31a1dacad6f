"""The command line, parsed: words and options in any order.  It looks at nothing else."""

from __future__ import annotations

import argparse

from ...errors import UsageError
from . import complaints, grammar
from .complaints import verbs_meant
from .grammar import EXIT_CODES
from .line import Line, scan
from .words import doing

__all__ = ["EXIT_CODES", "doing", "parse"]


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, of which the first word that is no option is the verb, or else the VM of a `take`.

    Raises UsageError.
    """
    parser, verbs = grammar.parser()
    line = scan(argv, verbs)
    if line.verb == grammar.HELP and not line.asks_for_help:
        line = _about(line, verbs)
    arguments = parser.parse_args(_in_order(argv, line, verbs))
    arguments.verbs_meant = [] if line.verb else verbs_meant(line.words[0])
    if arguments.verb in ("take", "boot"):
        _check_scratch_devices(arguments.scratch_device)
    if arguments.verb == "take" and arguments.backing and arguments.since is None:
        raise UsageError("--backing needs --since", "snapmount take --help")
    if arguments.verb == "take" and not arguments.iscsi:
        _check_without_iscsi(arguments, line)
    if arguments.verb in ("take", "show") and arguments.initiator_kind and arguments.json:
        raise UsageError("--for and --json do not go together: JSON has what each kind needs", "no --for")
    if arguments.verb == "dirty" and arguments.data and arguments.json:
        raise UsageError("--data and --json do not go together: --data prints JSON, and bytes between", "no --json")
    if arguments.verb == "boot" and arguments.console and arguments.json:
        raise UsageError("--console and --json do not go together", "snapmount boot --help")
    if arguments.verb == "boot" and arguments.wait_timeout is not None and arguments.wait_for is None:
        raise UsageError("--wait-timeout needs --wait-for", "snapmount boot --help")
    return arguments


def _check_scratch_devices(given: list[tuple[str, str]]) -> None:
    for words in zip(*given, strict=True):
        for word in words:
            if words.count(word) > 1:
                raise UsageError(f"--scratch-device names {word} twice", "a device for each disk")


def _check_without_iscsi(arguments: argparse.Namespace, line: Line) -> None:
    given = {
        "--portal": arguments.portal,
        "--initiator": arguments.initiator,
        "--mutual": arguments.mutual,
        "--secret-file": arguments.secret_file,
        "--target": arguments.target != "auto",
        "--for": arguments.initiator_kind,
    }
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} needs --iscsi", "snapmount take --help")
    if arguments.mountpoint is None:
        raise complaints.missing("a MOUNTPOINT is missing, or --iscsi", line, "snapmount take --help")


def _about(line: Line, verbs: dict[str, grammar.Parser]) -> Line:
    """The line that asks for the help of the verb that `help` names.  Raises UsageError."""
    complaints.check(line, verbs[grammar.HELP], verbs)
    asked = scan([*line.words, "--help"], verbs)
    if asked.words:
        meant = complaints.did_you_mean(verbs_meant(asked.words[0]))
        raise UsageError(f"there is no verb {asked.words[0]!r}{meant}", "snapmount --help")
    return asked


def _in_order(argv: list[str], line: Line, verbs: dict[str, grammar.Parser]) -> list[str]:
    """The verb, or `take`, then the options, which may have stood anywhere, then the other words.

    Raises UsageError.
    """
    if not line.verb and not line.words and "--" not in argv:
        return _without_words(line, verbs)
    verb = line.verb or "take"
    if not line.asks_for_help:
        complaints.check(line, verbs[verb], verbs)
    words = ("--", *line.words) if line.words else ()
    return [verb, *(option.word for option in line.options), *words]


def _without_words(line: Line, verbs: dict[str, grammar.Parser]) -> list[str]:
    """No verb, no VM: nothing, or what asks for help."""
    if line.asks_for_help or any(option.name == "--version" for option in line.options):
        return [option.word for option in line.options]
    if line.options:
        complaints.check_known(line, verbs)
        raise complaints.missing("a VM or a verb is missing", line, "snapmount --help")
    return ["--help"]
