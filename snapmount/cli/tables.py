"""Tables: aligned columns.  rich tells how wide a text is; its own tables take longer to load than `list` to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.cells import cell_len

from ..core import names

_GAP = "  "


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns.  They keep their width: a terminal that is too narrow wraps lines, nothing is cut off."""
    lines = [[names.printable(cell) for cell in row] for row in ([header] if header else []) + [*rows]]
    widths = [max(map(cell_len, column)) for column in zip_longest(*lines, fillvalue="")]
    return "".join(f"{_GAP.join(map(_padded, line, widths)).rstrip()}\n" for line in lines)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))
