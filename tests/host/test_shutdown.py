"""Whether the host is being shut down, as systemd tells, or what takes its place in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from snapmount.host import shutdown


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which says nothing yet; and an init that is running."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(shutdown, "INIT", tmp_path / "comm")
    (tmp_path / "comm").write_text("systemd\n")
    return tmp_path / "systemctl"


@pytest.mark.parametrize(
    ("says", "is_under_way"), [("stopping", True), ("running", False), ("degraded", False), ("offline", False)]
)
def test_it_is_as_systemd_tells(systemctl: Path, says: str, is_under_way: bool) -> None:
    systemctl.write_text(f"#!/bin/sh\necho {says}\nexit 1\n")
    systemctl.chmod(0o755)
    assert trio.run(shutdown.is_under_way) is is_under_way


def test_without_systemd_nobody_tells(systemctl: Path) -> None:
    assert not systemctl.exists()
    assert trio.run(shutdown.is_under_way) is False


def test_in_the_end_there_is_no_systemd_to_be_asked(systemctl: Path) -> None:
    systemctl.with_name("comm").write_text("systemd-shutdow\n")
    assert trio.run(shutdown.is_under_way) is True
