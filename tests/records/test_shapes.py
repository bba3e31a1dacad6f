"""A dataclass that was made of JSON holds what its types say, or is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest

from snapmount.records import shapes


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Sized:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Sized
    many: tuple[Sized, ...]
    colour: Colour
    perhaps: str | None = None
    moment: datetime | None = None


GOOD = Outer("a", Sized(5), (Sized(6),), Colour.RED)
GOOD_CHANGES = [{}, {"perhaps": "x"}, {"moment": datetime.now(UTC)}, {"name": "\udcff"}, {"many": ()}]


def sized(size: Any) -> Sized:
    return Sized(size)


@pytest.mark.parametrize("change", GOOD_CHANGES)
def test_what_the_types_say_is_admitted(change: dict[str, Any]) -> None:
    shapes.check(replace(GOOD, **change))


@pytest.mark.parametrize(
    "change",
    [
        *({"name": value} for value in (5, None, b"a", ["a"], "a\0b", "\ud800")),
        *({"inner": value} for value in (None, 5, sized("5"), sized(True), sized(5.0))),
        *({"many": value} for value in ([sized(5)], (5,), (sized(None),))),
        {"colour": "red"},
        {"perhaps": 5},
        {"moment": "2026"},
    ],
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        shapes.check(replace(GOOD, **change))
