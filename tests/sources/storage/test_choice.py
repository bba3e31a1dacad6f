"""How long a pause is expected to be."""

from __future__ import annotations

import pytest

from snapmount.sources.storage.choice import SUSPEND_S, Choice
from snapmount.storage.driver import Clone, Offer


def offer(driver: str, pause_s: float, is_concurrent: bool = False) -> Offer:
    return Offer(Clone(driver, ("/a",), ("/b",)), pause_s, is_concurrent=is_concurrent)


@pytest.mark.parametrize(
    ("offers", "pause_s"),
    [
        ([], 0.0),
        ([offer("reflink", 0.25), offer("reflink", 0.5)], 0.75),
        ([offer("hook", 0.25, True), offer("hook", 0.5, True), offer("hook", 0.125, True)], 0.5),
        ([offer("hook", 0.5, True), offer("reflink", 0.25)], 0.5),
        ([offer("hook", 0.25, True), offer("reflink", 0.25), offer("reflink", 0.25)], 0.5),
    ],
)
def test_what_is_made_at_the_same_time_counts_once(offers: list[Offer], pause_s: float) -> None:
    assert Choice(offers, {}, is_atomic=False).pause_s == SUSPEND_S + pause_s
