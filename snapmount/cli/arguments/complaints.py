"""What is wrong with a command line: options of other verbs, values that are missing, words that were mistyped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...core import names
from ...errors import UsageError
from . import grammar
from .line import Line, Option

# What other commands call it.
_ELSEWHERE = {
    "status": ["list", "show"],
    "ps": ["list"],
    "info": ["show"],
    "inspect": ["show"],
    "changes": ["dirty"],
    "diff": ["dirty"],
    "remove": ["delete"],
    "destroy": ["delete"],
    "stop": ["delete"],
    "kill": ["delete"],
    "unmount": ["umount"],
    "create": ["take"],
    "snapshot": ["take"],
    "mount": ["take"],
    "start": ["boot"],
    "run": ["boot"],
    "plug": ["attach"],
    "unplug": ["detach"],
    "check": ["doctor"],
    "checkpoint": ["checkpoints"],
    "repair": ["recover"],
}


def verbs_meant(word: str) -> list[str]:
    """The verbs that the word may have been meant for, best first; none for one that is like no verb."""
    verbs = {verb: [verb] for verb in grammar.parser()[1] if len(verb) > 2}  # many short words are like ls and rm
    known = verbs | _ELSEWHERE
    near = [word] if word in known else [] if "/" in word else names.near(word, known)
    return list(dict.fromkeys(verb for each in near for verb in known[each]))[:3]


def did_you_mean(words: Sequence[str], what: str = "") -> str:
    """The question, to follow a message; '' for no words."""
    return f"; did you mean {what}{' or '.join(words)}?" if words else ""


def the_verb_meant(line: Line) -> str:
    """Whether a verb was meant where none stands; to follow a message."""
    return "" if line.verb or not line.words else did_you_mean(verbs_meant(line.words[0]), "the verb ")


def missing(message: str, line: Line, remedy: str) -> UsageError:
    """The error for a word that is missing, with what may have become of it."""
    meant = the_verb_meant(line)
    apart = [option for option in line.options if option.is_apart and option.value]
    swallowed = f"; {apart[-1].value!r} is the value of {apart[-1].name}" if apart and not meant else ""
    return UsageError(f"{message}{swallowed}{meant}", remedy)


def check_known(line: Line, verbs: Mapping[str, grammar.Parser]) -> None:
    """Raise UsageError for an option that no verb has, or that lacks its value: for a line without a verb or words."""
    known = {name: form for parser in verbs.values() for name, form in parser.options().items()}
    for option in line.options:
        if option.name not in known:
            raise UsageError(f"there is no option {option.name}{_near(option, known)}", "snapmount --help")
        _check_value(option, known[option.name], known, "snapmount --help")


def check(line: Line, parser: grammar.Parser, verbs: Mapping[str, grammar.Parser]) -> None:
    """Raise UsageError if the verb of that parser has no such option, an option lacks its value, or words are
    missing or too many.
    """
    verb = parser.verb
    remedy = f"snapmount {verb} --help"
    own, all_names = parser.options(), {name for each in verbs.values() for name in each.options()}
    for option in line.options:
        if option.name not in own:
            is_known = option.name in all_names
            what = f"{verb} has no option" if is_known else "there is no option"
            has = _near(option, own) or (_what_there_is(own) if is_known else "")
            raise UsageError(f"{what} {option.name}{has}", remedy)
        _check_value(option, own[option.name], all_names, remedy)
    _check_words(line, parser, remedy)


def _near(option: Option, known: Iterable[str]) -> str:
    longs = [name.removeprefix("--") for name in known if name.startswith("--")]
    return did_you_mean([f"--{name}" for name in names.near(option.name.strip("-"), longs)])


def _what_there_is(own: Mapping[str, grammar.Form]) -> str:
    longs = dict.fromkeys(form.long for form in own.values() if form.long != "--help")
    return f"; it has {', '.join(longs)}" if longs else ""


def _check_value(option: Option, form: grammar.Form, known: Iterable[str], remedy: str) -> None:
    if not form.takes_value:
        if option.value is not None and not form.may_lack_value:
            raise UsageError(f"{option.name} takes no value, and {option.value!r} is given", remedy)
        return
    is_option = option.is_apart and option.value is not None and option.value.partition("=")[0] in {*known, "--"}
    if option.value is None or is_option:
        but = f", and {option.value} is an option" if is_option and option.value != "--" else ""
        raise UsageError(f"{option.name} needs a value: {option.name} {form.metavar}{but}", remedy)


def _check_words(line: Line, parser: grammar.Parser, remedy: str) -> None:
    expected = parser.words()
    needed = [f"a {word.name}" for word in expected if word.is_needed]
    if len(line.words) < len(needed):
        raise missing(f"{parser.verb} needs {' and '.join(needed)}", line, remedy)
    if len(line.words) > len(expected) and not any(word.may_be_several for word in expected):
        form = " ".join(word.name if word.is_needed else f"[{word.name}]" for word in expected) or "no other words"
        raise UsageError(
            f"{parser.verb} takes {form}; {line.words[len(expected)]!r} is too much{the_verb_meant(line)}", remedy
        )
