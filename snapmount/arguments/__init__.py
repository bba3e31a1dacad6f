"""The command line, parsed: words and options in any order.  It looks at nothing else."""

from __future__ import annotations

import argparse
import itertools

from ..errors import UsageError
from . import grammar
from .grammar import EXIT_CODES

__all__ = ["EXIT_CODES", "parse"]


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, of which the first word that is no option is the verb, or else the VM of a `take`."""
    parser, verbs = grammar.parser()
    arguments = parser.parse_args(_in_order(argv, verbs))
    if arguments.verb in ("take", "boot"):
        _check_scratch_devices(arguments.scratch_device)
    if arguments.verb == "take" and not arguments.iscsi:
        _check_without_iscsi(arguments)
    if arguments.verb in ("take", "show") and arguments.initiator_kind and arguments.json:
        raise UsageError("--for and --json do not go together: JSON has what each kind needs", "no --for")
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


def _check_without_iscsi(arguments: argparse.Namespace) -> None:
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
        raise UsageError("a MOUNTPOINT is missing, or --iscsi", "snapmount take --help")


def _in_order(argv: list[str], verbs: dict[str, grammar.Parser]) -> list[str]:
    """The verb, or `take`, then the options, which may have stood anywhere, then the other words."""
    with_value = {
        option
        for verb in verbs.values()
        for action in verb._actions
        if action.nargs != 0
        for option in action.option_strings
    }
    options: list[str] = []
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            break
        if word in with_value:
            options += [word, *itertools.islice(rest, 1)]
        elif word.startswith("-") and word != "-":
            options.append(word)
        else:
            words.append(word)
    else:
        if not words:  # no verb, no VM
            if argv and not any(option in ("-h", "--help", "--version") for option in options):
                raise UsageError("a VM or a verb is missing", "snapmount --help")
            return argv or ["--help"]
    verb = words.pop(0) if words and words[0] in verbs else "take"
    words += rest
    lacks_value = options[-1:] == argv[-1:] and argv[-1] in with_value
    if lacks_value or any(word.startswith("-") for word in words):
        words.insert(0, "--")
    return [verb, *options, *words]
