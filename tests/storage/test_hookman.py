"""STORAGE HOOKS in the man page is what is so: its examples are read by the code that reads hooks' answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from snapmount.core.document import from_document, to_document
from snapmount.core.user import User
from snapmount.storage import hook, hookdocument, settings
from snapmount.storage.driver import Room
from snapmount.storage.hookdocument import (
    ChangedAnswer,
    ChangedExtent,
    ChangedQuestion,
    Older,
    PlanAnswer,
    PlanQuestion,
    Question,
    SnapshotQuestion,
    StatusAnswer,
    Verb,
)

PAGE = (Path(__file__).parents[2] / "contrib" / "snapmount.1").read_text().replace("\\-", "-")
SECTION = PAGE[PAGE.index('.SH "STORAGE HOOKS"') : PAGE.index(".SH ISCSI")]
SUBSECTIONS = dict(re.findall(r"^\.SS (\w+)\n(.*?)(?=^\.SS |\Z)", SECTION, re.MULTILINE | re.DOTALL))

QUESTIONS: dict[Verb, type[Question]] = dict.fromkeys(Verb, SnapshotQuestion)
QUESTIONS |= {Verb.PLAN: PlanQuestion, Verb.CHANGED: ChangedQuestion}
READERS: dict[Verb, Any] = {
    Verb.PLAN: hookdocument.read_plan,
    Verb.STATUS: hookdocument.read_status,
    Verb.CHANGED: hookdocument.read_changed,
}


def examples(text: str) -> list[str]:
    return re.findall(r"^\.nf\n\.RS\n(.*?)^\.RE\n\.fi\n", text, re.MULTILINE | re.DOTALL)


def documents(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in the examples."""
    decoder = json.JSONDecoder()
    for example in examples(text):
        rest = example.strip()
        while rest:
            document, end = decoder.raw_decode(rest)
            yield document
            rest = rest[end:].strip()


def of_verb(verb: Verb) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The questions, and the answers."""
    found = list(documents(SUBSECTIONS[verb.value]))
    return [each for each in found if "verb" in each], [each for each in found if "verb" not in each]


def test_each_verb_has_a_subsection() -> None:
    assert list(SUBSECTIONS) == [verb.value for verb in Verb]


@pytest.mark.parametrize("verb", Verb)
def test_the_question_is_what_is_asked(verb: Verb) -> None:
    (question,), _ = of_verb(verb)
    read = from_document(QUESTIONS[verb], question)
    assert to_document(read) == question
    assert (read.version, read.verb, read.deadline_s) == (hookdocument.VERSION, verb, hook.DEADLINES_S[verb])
    assert f"has {hook.DEADLINES_S[verb]:g} seconds" in SUBSECTIONS[verb.value]


@pytest.mark.parametrize("verb", Verb)
def test_the_answers_are_read(verb: Verb) -> None:
    _, answers = of_verb(verb)
    assert answers
    for answer in answers:
        READERS.get(verb, hookdocument.read_done)(json.dumps(answer).encode())


@pytest.mark.parametrize("kind", [PlanAnswer, StatusAnswer, ChangedAnswer, ChangedExtent, Room, Older, User])
def test_each_key_is_in_an_example(kind: Any) -> None:
    shown = {key for text in SUBSECTIONS.values() for document in documents(text) for key in keys(document)}
    assert {field.name for field in fields(kind)} <= shown


def keys(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from keys(value)
    if isinstance(document, list):
        for value in document:
            yield from keys(value)


def test_what_all_questions_have_is_told() -> None:
    told = set(re.findall(r"^\.TP\n\.B (\w+)$", SECTION, re.MULTILINE))
    assert {field.name for field in fields(SnapshotQuestion)} == told
    assert "names" in SUBSECTIONS["plan"]


def test_the_limits_are_told() -> None:
    told = f"at most {hookdocument.HOLDS_MAX_S:g} (default: {hookdocument.HOLDS_S:g})"
    assert told in SUBSECTIONS["status"].replace("\n", " ")


def test_the_settings_are_read(tmp_path: Path) -> None:
    (example,) = [each for each in examples(SECTION) if each.startswith("[hooks]")]
    assert settings.PATH in SECTION
    path = tmp_path / "storage.toml"
    path.write_text(example)
    path.chmod(0o644)
    read = settings.read(str(path))
    for prefix in re.findall(r'^"(.*?)"', example, re.MULTILINE):
        hooked = read.hook_of(f"{prefix}/x")
        assert hooked
        assert Path(hooked).name in {each.name for each in (Path(__file__).parents[2] / "contrib" / "hooks").iterdir()}
