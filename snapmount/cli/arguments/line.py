"""A command line before it is parsed: which words are the verb, options, their values, and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import grammar


@dataclass(frozen=True)
class Option:
    """An option, as it was given."""

    name: str
    value: str | None = None
    is_apart: bool = False  # the value was a word of its own

    @property
    def word(self) -> str:
        """As argparse takes it, also where the value begins with a dash."""
        return self.name if self.value is None else f"{self.name}={self.value}"


@dataclass(frozen=True)
class Line:
    """What stands on a command line."""

    verb: str | None  # None: none of the words before `--` is one
    options: tuple[Option, ...]
    words: tuple[str, ...]

    @property
    def asks_for_help(self) -> bool:
        return any(option.name in ("-h", "--help") for option in self.options)


def scan(argv: list[str], verbs: Mapping[str, grammar.Parser]) -> Line:
    """Tell the words apart.  The first one that is neither an option nor the value of one is the verb, if it can be.

    An option that has a value with some verbs only, and stands before the verb, has one only if it is given as
    --NAME=VALUE.
    """
    forms = _before_the_verb(verbs)
    options: list[Option] = []
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            break
        if word == "-" or not word.startswith("-"):
            words.append(word)
            if len(words) == 1 and word in verbs:
                forms |= verbs[word].options()
        else:
            options += _options(word, rest, forms)
    verb = words.pop(0) if words and words[0] in verbs else None
    return Line(verb, tuple(options), (*words, *rest))


def _before_the_verb(verbs: Mapping[str, grammar.Parser]) -> dict[str, grammar.Form]:
    """How each option is given while it is not known which verb it is for."""
    forms: dict[str, grammar.Form] = {}
    for parser in verbs.values():
        for name, form in parser.options().items():
            if name not in forms or forms[name].takes_value:
                forms[name] = form
    return forms


def _options(word: str, rest: Iterator[str], forms: Mapping[str, grammar.Form]) -> Iterator[Option]:
    """Those of a word: one of two dashes, or several letters after one dash."""
    if word.startswith("--"):
        name, separator, value = word.partition("=")
        yield Option(name, value) if separator else _with_value(name, rest, forms)
        return
    for place, letter in enumerate(word[1:], 1):
        name, value = f"-{letter}", word[place + 1 :]
        form = forms.get(name)
        if form and form.takes_value and value:
            yield Option(form.long, value)
            return
        yield _with_value(name, rest, forms)
        if form is None:
            return


def _with_value(name: str, rest: Iterator[str], forms: Mapping[str, grammar.Form]) -> Option:
    form = forms.get(name)
    if form is None or not form.takes_value:
        return Option(name)
    value = next(rest, None)
    return Option(form.long, value, is_apart=True)
