"""What is shown of a snapshot, as text."""

from __future__ import annotations

from snapmount import present
from snapmount.state import Store

from .test_state import a_record, a_snapshot, store  # noqa: F401


def test_what_take_says_cannot_steer_the_terminal(store: Store) -> None:  # noqa: F811
    record = store.claim(a_record(a_snapshot(vm="vm\x9b2J\u202e"), "/mnt/\x1b[2J")).record
    shown = present.Shown(record, store)
    for text in (shown.taken(), shown.details(), present.listing([shown])):
        assert all(line.isprintable() for line in text.splitlines())
        assert "\x1b" not in text
