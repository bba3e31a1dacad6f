"""Sizes and times read as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import units

from ..strategies import PROPERTY

BYTES_OF = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50, "EiB": 1 << 60}
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 * units.MIB, "64 MiB"),
        (units.GIB + units.GIB // 4, "1.2 GiB"),
        (4 << 40, "4 TiB"),
        (3 << 60, "3 EiB"),
        (1 << 71, "2048 EiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_it_fills(size_bytes: int, shown: str) -> None:
    assert units.size(size_bytes) == shown


@PROPERTY
@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_a_size_is_off_by_no_more_than_its_rounding(size_bytes: int) -> None:
    number, unit = units.size(size_bytes).split(" ")
    assert abs(float(number) * BYTES_OF[unit] - size_bytes) <= 0.0501 * BYTES_OF[unit]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"),
        (0, "0s"),
        (42.9, "42s"),
        (59.999, "59s"),
        (60, "1m"),
        (312, "5m 12s"),
        (3 * 3600 + 5 * 60 + 59, "3h 5m"),
        (2 * 86400 + 4 * 3600 + 59 * 60, "2d 4h"),
        (3600, "1h"),
        (3600 + 59, "1h"),
        (400 * 86400, "400d"),
    ],
)
def test_a_time_is_shown_in_its_two_leading_units(seconds: float, shown: str) -> None:
    assert units.duration(seconds) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d 12h", 129600), ("1w", 604800), ("520w", 314496000)],
)
def test_a_time_is_read_as_it_is_written(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "0s", "-1", "-5m", "1.5h", "h", "5 m", "2hours", "1d12h", "1y", "1e3", "inf", "\u0665m", "521w"],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        units.parse_duration(text)


@PROPERTY
@given(st.integers(min_value=60, max_value=10**8))
def test_a_time_that_is_shown_can_be_read(seconds: int) -> None:
    assert 0 <= seconds - units.parse_duration(units.duration(seconds)) < 3600


@PROPERTY
@given(st.integers(min_value=0, max_value=10**9))
def test_a_time_is_never_shown_longer_than_it_is_nor_shorter_by_its_last_unit(seconds: int) -> None:
    parts = [(int(part[:-1]), SECONDS_OF[part[-1]]) for part in units.duration(seconds).split(" ")]
    shown = sum(number * unit for number, unit in parts)
    smaller = max((unit for unit in SECONDS_OF.values() if unit < parts[0][1]), default=1)
    assert shown <= seconds < shown + smaller


@pytest.mark.parametrize(("size", "shown"), [((1 << 20) - 1, "1 MiB"), ((1 << 30) - 1, "1 GiB"), (1, "1 byte")])
def test_a_size_that_is_rounded_up_to_the_next_unit_is_shown_in_it(size: int, shown: str) -> None:
    assert units.size(size) == shown


@pytest.mark.parametrize(("text", "kib"), [("512M", 524288), ("2G", 2097152), ("1536 MiB", 1572864), ("1K", 1)])
def test_memory_is_read_as_people_write_it(text: str, kib: int) -> None:
    assert units.parse_memory(text) == kib


@pytest.mark.parametrize("text", ["", "2", "0G", "-1G", "2g", "1.5G", "2 GB", "lots", "²G"])
def test_memory_without_a_unit_or_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size such as 512M or 2G"):
        units.parse_memory(text)
