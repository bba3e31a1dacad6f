"""Hosts are told apart, also those that were copied."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapmount.host import identity
from snapmount.host.identity import Host


def this(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine_id: str | None, name: str) -> Host:
    """The host, where it has that machine-id and name."""
    file = tmp_path / "machine-id"
    file.unlink(missing_ok=True)
    if machine_id is not None:
        file.write_text(machine_id)
    monkeypatch.setattr(identity, "MACHINE_ID", file)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=name))
    return Host.this()


def test_a_host_is_the_same_each_time_and_known_by_its_name() -> None:
    assert Host.this() == Host.this()
    assert Host.this().name == socket.gethostname()
    assert Host.this().id.isalnum()


def test_another_machine_id_or_name_is_another_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = [(None, "a"), (None, "b"), ("0" * 32, "a"), ("1" * 32, "a"), ("0" * 32, "b")]
    found = {this(monkeypatch, tmp_path, *each).id for each in told}
    assert len(found) == len(told)
    assert not any("0" * 8 in each for each in found), "the machine-id is not shown"


def test_a_host_without_a_machine_id_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without = [this(monkeypatch, tmp_path, each, "a") for each in (None, "", "\n", "uninitialized\n")]
    assert len(set(without)) == 1
