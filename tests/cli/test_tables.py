"""Columns are aligned as a terminal shows them."""

from __future__ import annotations

from snapmount.cli.tables import table


def test_columns_are_as_wide_as_a_terminal_shows_their_widest_cell() -> None:
    rows = [("vm1", "a"), ("日本", "b"), ("e\u0301te\u0301", "c"), ("a\x1b", "d")]
    assert table(("VM", "X"), rows) == "VM     X\nvm1    a\n日本   b\ne\u0301te\u0301    c\na\\x1b  d\n"


def test_nothing_is_cut_off_and_no_line_ends_with_blanks() -> None:
    name = "x" * 20_000
    assert table((), [("a", ""), (name, "b")]) == f"a\n{name}  b\n"


def test_what_looks_like_markup_is_none() -> None:
    assert table((), [("[bold]", ":smile:")]) == "[bold]  :smile:\n"
