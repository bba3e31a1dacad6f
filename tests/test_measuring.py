"""What a server has measured of scratch space, kept for others to show as long as it is of now."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from snapmount.scratch.measuring import CURRENT_S, Figures


def test_figures_of_now_come_back(tmp_path: Path) -> None:
    assert Figures.load(tmp_path) is None
    for left in (None, 12.5):
        figures = Figures(time.monotonic(), 1 << 30, 1e6, left)
        figures.write(tmp_path)
        assert Figures.load(tmp_path) == figures


def test_figures_of_the_past_or_of_another_boot_are_none(tmp_path: Path) -> None:
    for at_s in (time.monotonic() - CURRENT_S - 1, time.monotonic() + 1000):
        Figures(at_s, 1, 1, None).write(tmp_path)
        assert Figures.load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"at_s": "soon", "used_bytes": 1, "bytes_per_s": 1, "left_s": 1}'])
def test_broken_figures_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "space.json").write_text(text)
    assert Figures.load(tmp_path) is None
