"""What contrib/bench makes of its measurements; they themselves are made by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "contrib" / "bench"


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("storage")


@pytest.fixture
def figures(storage: ModuleType) -> dict[str, list[float]]:
    """Of two rounds of one kind, the second of which came upon a slow machine."""
    rows: dict[str, list[float]] = {
        "bare pause s": [0.01, 0.02, 0.03, 0.02, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1],
        "extents": [6, 8],
        "storage, pause s": [0.05, 0.16],
        "pull, longest us at the take": [4000, 90000],
        "storage, longest us at the take": [5000, 7000],
    }
    phases = ["no snapshot", *(f"{source}, {life}" for source in storage.TAKE for life in ("new", *storage.LIVES))]
    for phase in phases:
        mean = {"pull, read slowly": 300.0, "storage, read slowly": 120.0}.get(phase, 100.0)
        rows |= {f"{phase}, mean us": [mean, mean], f"{phase}, tail us": [1000, 1000], f"{phase}, longest us": [5, 5]}
        rows |= {f"{phase}, bytes a second": [1 << 26, 1 << 26]} if "read" in phase else {}
    for disk in ("pull, raw", "pull, qcow2", "storage, raw", "storage, qcow2"):
        rows |= {f"{disk}, s of QEMU": [0.5, 0.7], f"{disk}, s of snapmount": [0.1, 0.1]}
    for row in storage.READS:
        rows |= {f"{row}, view": [1 << 30, 1 << 30], f"{row}, file": [1 << 31, 1 << 31]}
    return rows


def test_a_pause_is_compared_with_the_bare_ones_of_its_own_round(
    storage: ModuleType, figures: dict[str, list[float]]
) -> None:
    assert storage.bare_s(figures) == [0.02, 0.1]
    assert storage.beyond_s(figures) == pytest.approx([0.03, 0.06])
    assert storage.spread([3.0, 1.0, 2.0], 1000) == "1,000 / 2,000 / 3,000"


def test_a_reader_s_cost_is_what_it_adds_in_the_same_turn(storage: ModuleType, figures: dict[str, list[float]]) -> None:
    figures |= {"pull, idle, mean us": [100, 900, 100], "pull, read slowly, mean us": [300, 1200, 250]}
    assert storage.cost_us(figures, "pull", "read slowly") == 200
    assert storage.cost_us(figures, "storage", "read slowly") == 20


def test_the_report_has_every_figure_and_says_why_a_kind_has_none(
    storage: ModuleType, figures: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "lacking", lambda kind: "no device mapper" if kind == "lvm thin" else None)
    report = storage.report({"reflink, few extents": figures, "reflink, many extents": figures, "btrfs": figures})
    lines = [line.split("  ") for line in report.splitlines()]
    assert report.count("50 / 105 / 160") == 3
    assert ["", "lvm thin", *[""] * 6, "not measured: no device mapper"] in lines
    assert report.count("read slowly, a reader adds to the mean: 200 us by pull, 20 us by storage") == 2
    assert report.count("storage, qcow2          0.60            0.10") == 2
    assert report.count("1,024       2,048    0.50") == 2 * 3


@pytest.fixture
def increments(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("increments")


def test_what_nbdinfo_tells_of_a_bitmap(increments: ModuleType) -> None:
    told = (
        "         0       65536    0  clean\n     65536      131072    1  dirty\n    196608   4294836224    0  clean\n"
    )
    assert increments.dirty_ranges(told) == [(65536, 131072)]


def test_a_round_overwrites_data_so_that_full_copies_stay_as_large(increments: ModuleType) -> None:
    for disk, size in increments.SIZES.items():
        clusters = increments.used(size)
        assert clusters == sorted(set(clusters))
        assert increments.CHANGED[disk] <= len(clusters) == increments.USED
        assert (clusters[-1] + 1) * increments.CLUSTER <= size
    assert increments.CHANGED["vda"] * increments.CLUSTER == 50 << 20


def test_each_way_is_the_first_in_its_turn(increments: ModuleType) -> None:
    turns = [increments.Round(None, number, {}).in_turn(increments.LISTS)[0] for number in range(3)]
    assert sorted(turns) == sorted(increments.LISTS)


def test_the_report_compares_each_way_with_snapmount(increments: ModuleType) -> None:
    figures = {"load": [9.0, 11.6], "start s": [0.2], "take, s": [1.0, 2.0, 9.0], f"{increments.SINCE}, s": [3.0]}
    for disk in increments.SIZES:
        for number, way in enumerate(increments.LISTS, 1):
            figures |= {f"{disk}, {way}, first s": [0.5], f"{disk}, {way}, all s": [2 * number]}
    for ways in increments.COPIES.values():
        for number, way in enumerate(ways, 1):
            figures |= {f"{way}, s": [2 * number], f"{way}, bytes": [50 << 20]}
    lines = [line.split("  ") for line in increments.report(figures).splitlines()]
    ratios = [line[-1].strip() for line in lines]
    assert lines[0] == ["increments; load 9 to 12 (s, medians)"]
    assert ratios[2:3] + ratios[6:9] + ratios[10:13] == ["1.50", *["2.00", "2.00", "3.00"] * 2]
    assert ratios[14:] == ["2.00", "2.00"] * 2
