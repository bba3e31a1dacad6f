"""What is read from a document is what the types say, or an error that says where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pytest
from hypothesis import given

from snapmount.core.document import DocumentError, Reshaped, dump, format_time, from_document, to_document

from ..strategies import PROPERTY, json_values


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Sized:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Sized
    many: tuple[Sized, ...]
    pairs: tuple[tuple[str, int], ...]
    colour: Colour
    is_one: bool
    ratio: float
    moment: datetime
    more: Mapping[str, Any]
    perhaps: str | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Versioned(Reshaped):
    inner: Sized

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        return {"version": 2, **written}

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        if document.pop("version") == 1:
            return {"inner": {"size": from_document(int, document.pop("size"), "size")}} | document
        return document


@dataclass(frozen=True)
class Holder:
    all: tuple[Versioned, ...]


@dataclass(frozen=True)
class Facts(Reshaped):
    ignores_unknown_keys = True

    size: int


MOMENT = datetime(2026, 11, 23, 12, 5, 1, 123, tzinfo=UTC)
OUTER = Outer("a", Sized(5), (Sized(6),), (("b", 7),), Colour.RED, True, 0.5, MOMENT, {"any": [None]})
GOOD: dict[str, Any] = {
    "name": "a",
    "inner": {"size": 5},
    "many": [{"size": 6}],
    "pairs": [["b", 7]],
    "colour": "red",
    "is_one": True,
    "ratio": 0.5,
    "moment": "2026-11-23T12:05:01.000123Z",
    "more": {"any": [None]},
    "perhaps": None,
    "secret": None,
}


def error_of(kind: type, document: object, where: str = "") -> str:
    with pytest.raises(DocumentError) as raised:
        from_document(kind, document, where)
    return str(raised.value)


# -- what is as it should be -------------------------------------------------------------------------------------------


def test_each_type_has_its_form_in_json_and_comes_back_from_it() -> None:
    assert to_document(OUTER) == GOOD
    assert list(to_document(OUTER)) == list(GOOD)
    assert from_document(Outer, json.loads(dump(to_document(OUTER)))) == OUTER


@pytest.mark.parametrize(
    ("change", "means"),
    [
        ({"perhaps": "x"}, {"perhaps": "x"}),
        ({"name": "\udcff"}, {"name": "\udcff"}),
        ({"many": []}, {"many": ()}),
        ({"colour": "blue"}, {"colour": Colour.BLUE}),
        ({"ratio": 2}, {"ratio": 2.0}),
        ({"moment": "2026-11-23T14:05:01.000123+02:00"}, {}),
        ({"inner": {"size": -(1 << 80)}}, {"inner": Sized(-(1 << 80))}),
    ],
)
def test_what_the_types_say_is_admitted(change: dict[str, Any], means: dict[str, Any]) -> None:
    read = from_document(Outer, GOOD | change)
    assert read == replace(OUTER, **means)
    assert type(read.ratio) is float


def test_only_what_has_a_default_may_be_missing() -> None:
    for key in GOOD:
        document = {name: value for name, value in GOOD.items() if name != key}
        if key in ("perhaps", "secret"):
            assert from_document(Outer, document) == OUTER
        else:
            assert error_of(Outer, document) == f"{key} is missing"


def test_a_list_alone_is_a_document_too() -> None:
    assert from_document(tuple[Sized, ...], [{"size": 1}, {"size": 2}]) == (Sized(1), Sized(2))
    assert error_of(tuple[Sized, ...], [{"size": 1}, 5], "sizes") == "sizes[1] is 5, not an object"


# -- what is not -------------------------------------------------------------------------------------------------------


WRONG: dict[str, list[Any]] = {
    "name": [5, None, ["a"], {}, "a\0b", "\ud800"],
    "inner": [None, 5, [], {}, {"size": 5, "more": 6}, *({"size": size} for size in ("5", True, 5.0, None))],
    "many": [None, {}, "", [5], [{"size": None}]],
    "pairs": [[[]], [["b"]], [["b", "7"]], [["b", 7, 8]], [{"b": 7}], {"b": 7}],
    "colour": ["RED", None, 1, ["red"], {}],
    "is_one": [1, "true", None],
    "ratio": ["0.5", True, None, float("nan"), float("inf"), 1 << 1024],
    "moment": ["2026", "2026-11-23T12:05:01", "0001-01-01T00:00:00+14:00", 0, None, "\0"],
    "more": [None, [], "x"],
    "perhaps": [5, False, "\0"],
    "unknown": [None],
}


@pytest.mark.parametrize("key", WRONG)
def test_anything_else_is_refused(key: str) -> None:
    for value in WRONG[key]:
        assert re.match(rf"{key}\b", error_of(Outer, GOOD | {key: value})), value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 5}, "name is 5, not a text"),
        ({"name": "a\0"}, 'name is "a\\u0000", not a text without zero characters'),
        ({"name": "\ud800"}, 'name is "\\ud800", not Unicode'),
        ({"many": [{"size": 1}, {"size": "x"}]}, 'many[1].size is "x", not a whole number'),
        ({"pairs": [["b"]]}, 'pairs[0] is ["b"], not a list of 2'),
        ({"colour": "green"}, 'colour is "green", not one of red, blue'),
        ({"is_one": None}, "is_one is null, not true or false"),
        ({"ratio": "x"}, 'ratio is "x", not a number'),
        ({"moment": "2026"}, 'moment is "2026", not a time with its zone'),
        ({"inner": {}}, "inner.size is missing"),
        ({"inner": {"size": 1, "x": 2}}, "inner.x is not known"),
    ],
    ids=str,
)
def test_an_error_says_where_it_is_and_what_is_there(change: dict[str, Any], says: str) -> None:
    assert error_of(Outer, GOOD | change) == says


def test_an_error_of_the_whole_document_has_no_path() -> None:
    assert error_of(Outer, None) == "it is null, not an object"


def test_an_error_is_one_short_line_whatever_the_document_holds() -> None:
    for document in (GOOD | {"name": ["\n\x1b[31m" * 1000]}, GOOD | {"\n\x1b[31m" * 1000: 1}, GOOD | {"x" * 1000: 1}):
        said = error_of(Outer, document)
        assert said.isprintable()
        assert len(said) < 120


def test_an_error_does_not_tell_a_secret() -> None:
    assert error_of(Outer, GOOD | {"secret": "hush\0"}) == "secret is not what it must be"


@PROPERTY
@given(json_values)
def test_any_document_is_read_or_refused(document: Any) -> None:
    for kind in (Outer, Versioned, Holder, Facts, tuple[Sized, ...]):
        try:
            from_document(kind, document)
        except DocumentError:
            pass


# -- what has another shape --------------------------------------------------------------------------------------------


def test_a_document_may_hold_more_than_the_fields_also_within_another() -> None:
    holder = Holder((Versioned(Sized(1)), Versioned(Sized(2))))
    document = {"all": [{"version": 2, "inner": {"size": 1}}, {"version": 2, "inner": {"size": 2}}]}
    assert to_document(holder) == document
    assert from_document(Holder, document) == holder
    assert from_document(Holder, {"all": [{"version": 1, "size": 1}, document["all"][1]]}) == holder
    assert document["all"][0] == {"version": 2, "inner": {"size": 1}}, "reading changes nothing"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "all[0].version is missing"),
        ({"version": 1}, "all[0].size is missing"),
        ({"version": 1, "size": "x"}, 'all[0].size is "x", not a whole number'),
        ({"version": 2, "inner": 5}, "all[0].inner is 5, not an object"),
        ({"version": 2, "inner": {"size": 1}, "x": 1}, "all[0].x is not known"),
        (5, "all[0] is 5, not an object"),
    ],
)
def test_an_error_in_another_shape_has_the_whole_path(document: object, says: str) -> None:
    assert error_of(Holder, {"all": [document]}) == says


def test_facts_may_have_more_keys_than_this_version_knows() -> None:
    assert from_document(Facts, {"size": 1, "later": None}) == Facts(1)
    assert error_of(Facts, {"later": None}) == "size is missing"


# -- bytes and times ---------------------------------------------------------------------------------------------------


def test_a_time_is_written_in_utc_with_microseconds() -> None:
    east = timezone(timedelta(hours=2))
    assert format_time(datetime(2026, 1, 1, 1, 30, tzinfo=east)) == "2025-12-31T23:30:00.000000Z"


def test_a_document_is_written_as_lines_for_people_and_programs() -> None:
    assert dump({"vm": "vm1", "disks": []}) == b'{\n  "vm": "vm1",\n  "disks": []\n}\n'


def test_names_in_any_encoding_stay_valid_json() -> None:
    document = {"vm": "Grüße 🙂", "origin": b"/caf\xe9.img".decode("utf-8", "surrogateescape")}
    assert json.loads(dump(document).decode("ascii")) == document
