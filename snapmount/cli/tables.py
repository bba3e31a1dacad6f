"""Tables, drawn by rich, which is loaded only when there is one to draw: that takes longer than most commands."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from ..core import names

_PIPED_WIDTH = 10_000  # no wrapping for programs


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns.  They keep their width: a terminal that is too narrow wraps lines, nothing is cut off."""
    from rich.console import Console
    from rich.table import Table

    aligned = Table(*header, box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for row in rows:
        aligned.add_row(*(names.printable(cell) for cell in row))
    printed = io.StringIO()
    Console(file=printed, width=_PIPED_WIDTH, markup=False, emoji=False, highlight=False).print(aligned)
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
