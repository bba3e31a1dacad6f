"""A Debian host's apt sources, rewritten for another release of Debian (sources.list(5)); pure.

All but the suites stays as it is, whatever it is: mirrors, keyrings, options.  What is not Debian's own is left out: it
need not have that release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# "stable" and the like, for the release that the host has
_ALIASES = ("oldstable", "stable", "testing")
_KINDS = ("", "-updates", "-security")  # backports and proposals are nobody's first choice


@dataclass(frozen=True)
class Source:
    """One source, as it is written into a file of sources.list.d: a stanza, or a line of the older form."""

    text: str
    extension: str  # of the file: "sources" or "list"
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    keyrings: tuple[Path, ...]  # none: those in trusted.gpg.d


def rewritten(text: str, extension: str, codename: str, suite: str) -> list[Source]:
    """What of a file's sources is Debian's, for the suite in place of the host's own, whose codename is given."""
    return list((_stanzas if extension == "sources" else _lines)(text, codename, suite))


def mirror(sources: list[Source], suite: str) -> Source:
    """The source of the suite itself, not of its updates.  Raises RuntimeError if there is none."""
    for source in sources:
        if suite in source.suites:
            return source
    raise RuntimeError("the apt sources of this host name no mirror of Debian: see /etc/apt/sources.list.d")


def _stanzas(text: str, codename: str, suite: str) -> Iterator[Source]:
    for stanza in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = _fields(lines)
        words = {name: value.split() for name, value in fields.items()}
        suites = _suites(words.get("suites", []), codename, suite)
        is_on = fields.get("enabled", "yes").strip().lower() in ("yes", "true", "1", "on", "with", "enable")
        if is_on and suites and "deb" in words.get("types", []) and "main" in words.get("components", []):
            kept = [f"Suites: {' '.join(suites)}" if _name(line) == "suites" else line for line in lines]
            keyrings = tuple(Path(word) for word in words.get("signed-by", []) if word.startswith("/"))
            yield Source("\n".join(kept) + "\n", "sources", tuple(words.get("uris", [])), suites, keyrings)


def _fields(lines: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t"):
            fields[name] = f"{fields.get(name, '')}\n{line}"
        elif line:
            name = _name(line)
            fields[name] = line.partition(":")[2]
    return fields


def _name(line: str) -> str:
    return line.partition(":")[0].lower()


def _lines(text: str, codename: str, suite: str) -> Iterator[Source]:
    for line in text.splitlines():
        parsed = re.fullmatch(
            r"\s*deb\s+(?P<options>\[[^]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*).*", line
        )
        suites = _suites([parsed["suite"]], codename, suite) if parsed else ()
        if parsed and suites and "main" in parsed["rest"].split():
            options = (parsed["options"] or "").strip()
            signed = re.search(r"signed-by=([^\s\]]+)", options)
            keyrings = tuple(Path(each) for each in signed[1].split(",") if each.startswith("/")) if signed else ()
            words = ["deb", *([options] if options else []), parsed["uri"], suites[0], parsed["rest"].strip()]
            yield Source(" ".join(words) + "\n", "list", (parsed["uri"],), suites, keyrings)


def _suites(names: list[str], codename: str, suite: str) -> tuple[str, ...]:
    kinds = [kind for kind in _KINDS if any(f"{name}{kind}" in names for name in (codename, *_ALIASES))]
    return tuple(f"{suite}{kind}" for kind in kinds)
