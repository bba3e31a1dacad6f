"""What hooks may answer, and what is said of anything else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapmount.core.document import DocumentError
from snapmount.core.extents import HOLE, ZERO, Extent
from snapmount.storage import hookdocument
from snapmount.storage.driver import Room, is_url
from snapmount.storage.hookdocument import PlanAnswer, StatusAnswer

from ..strategies import PROPERTY

READERS: dict[str, Callable[[bytes], Any]] = {
    "plan": hookdocument.read_plan,
    "take": hookdocument.read_done,
    "status": hookdocument.read_status,
    "changed": hookdocument.read_changed,
    "delete": hookdocument.read_done,
}


def answered(verb: str, document: object) -> Any:
    return READERS[verb](json.dumps(document).encode())


def test_a_plan_may_say_no_more_than_the_pause() -> None:
    assert answered("plan", {"pause_s": 1}) == PlanAnswer(pause_s=1.0)


def test_a_plan_may_say_why_there_is_none() -> None:
    assert answered("plan", {"why_not": "lies in no dataset"}).why_not == "lies in no dataset"


def test_a_status_tells_a_path_or_a_url_and_where_there_is_room() -> None:
    rooms = [{"place": "the pool", "free_bytes": 1, "total_bytes": 2}]
    read = answered("status", {"frozen": "/dev/rbd0", "rooms": rooms})
    assert read == StatusAnswer(frozen="/dev/rbd0", rooms=(Room("the pool", 1, 2),))
    for url in ("https://filer/api/storage/volumes/1/snapshots/2", "rbd:vms/vm1@x", "https://me@[::1]:8443/"):
        read = answered("status", {"frozen": url})
        assert read.frozen == url
        assert is_url(url)
    assert not is_url("/dev/rbd0")


def test_changed_extents_are_in_order_and_may_be_zeros() -> None:
    extents = [{"start": 0, "length": 512}, {"start": 512, "length": 512, "zero": True}]
    assert answered("changed", {"extents": extents}) == [Extent(0, 512, 0), Extent(512, 512, HOLE | ZERO)]
    assert answered("changed", {"extents": []}) == []
    assert answered("changed", {"why_not": "it was moved"}) == "it was moved"


@pytest.mark.parametrize(
    ("verb", "document", "complaint"),
    [
        ("plan", [], "it is [], not an object"),
        ("plan", {}, "pause_s is missing"),
        ("plan", {"pause_s": "short"}, 'pause_s is "short", not a number'),
        ("plan", {"pause_s": -1}, "pause_s is -1, less than 0"),
        ("plan", {"pause_s": 1, "why_not": "x"}, "it has both why_not and pause_s"),
        ("plan", {"pause_s": 1, "cost": 1}, "cost is not known"),
        ("plan", {"pause_s": 1, "state": [1]}, "state is [1], not an object"),
        ("take", {"frozen": "/x"}, "frozen is not known"),
        ("take", None, "it is null, not an object"),
        ("delete", {"done": True}, "done is not known"),
        ("status", {}, "frozen is missing"),
        ("status", {"frozen": "/x", "lost": "gone"}, "it has both lost and frozen"),
        ("status", {"frozen": "x"}, 'frozen is "x", neither an absolute path nor a URL'),
        ("status", {"frozen": ""}, 'frozen is "", neither an absolute path nor a URL'),
        ("status", {"frozen": "https://a b"}, 'frozen is "https://a b", neither an absolute path nor a URL'),
        ("status", {"frozen": "https://[a"}, 'frozen is "https://[a", which is no valid URL'),
        ("status", {"frozen": "https://u:p@a/"}, "frozen is a URL with a password, which everybody would see"),
        ("status", {"frozen": "/" * 5000}, "frozen has 5000 characters, more than 4096"),
        ("status", {"frozen": "/x", "rooms": {}}, "rooms is {}, not a list"),
        (
            "status",
            {"frozen": "/x", "rooms": [{"place": "p", "free_bytes": 1.5, "total_bytes": 2}]},
            "rooms[0].free_bytes is 1.5, not a whole number",
        ),
        (
            "status",
            {"frozen": "/x", "rooms": [{"place": "p", "free_bytes": 3, "total_bytes": 2}]},
            "rooms[0] has 3 free bytes of 2",
        ),
        ("status", {"frozen": "/x", "holds_s": 61}, "holds_s is 61, not from 0 to 60"),
        ("changed", {}, "extents is missing"),
        ("changed", {"extents": [[0, 1]]}, "extents[0] is [0, 1], not an object"),
        ("changed", {"extents": [{"start": 0, "length": 0}]}, "extents[0] starts at 0 and has 0 bytes"),
        ("changed", {"extents": [{"start": -1, "length": 1}]}, "extents[0] starts at -1 and has 1 bytes"),
        (
            "changed",
            {"extents": [{"start": 8, "length": 8}, {"start": 0, "length": 1}]},
            "extents[1] starts at 0, before the end of the one before it",
        ),
    ],
)
def test_anything_else_is_an_error_that_names_the_field(verb: str, document: object, complaint: str) -> None:
    with pytest.raises(DocumentError) as caught:
        answered(verb, document)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"frozen: /x\n", 'it is no JSON: "frozen: /x"'),
        (b'{"a": 1} {"b": 2}', r'it is no JSON: "{\"a\": 1} {\"b\": 2}"'),
        (b"\xff\xfe\xff", 'it is no JSON: "\\ufffd\\ufffd\\ufffd"'),
    ],
)
def test_what_is_no_json_is_shown(verb: str, answer: bytes, complaint: str) -> None:
    with pytest.raises(DocumentError) as caught:
        READERS[verb](answer)
    assert str(caught.value) == complaint


def test_what_is_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(DocumentError, match="it is no JSON"):
        hookdocument.read_plan(b"[" * 200_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("why_not", "pause_s", "remedy", "guest_pays", "state", "lost", "frozen", "rooms", "extents")


@settings(PROPERTY, max_examples=40)
@given(verb=st.sampled_from(list(READERS)), document=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3) | JSON)
def test_whatever_a_hook_answers_is_read_or_refused(verb: str, document: object) -> None:
    with contextlib.suppress(DocumentError):
        answered(verb, document)
