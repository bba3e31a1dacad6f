"""Checks: tests that run in a VM under a stock kernel (stock_kernel.py), each reported outside as a test of its own."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import stock_kernel

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Check:
    """A check, with all its parameters."""

    module: str  # such as "publish/iscsi/lio_checks.py"
    name: str

    @property
    def selector(self) -> str:
        """What pytest finds it by."""
        return f"{TESTS / self.module}::{self.name}"

    def __str__(self) -> str:
        return self.name


def of(module: str) -> list[Check]:
    """The checks of a module of the tests, without loading it."""
    return [
        Check(module, node.name)
        for node in ast.parse((TESTS / module).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


class Report:
    """What the VM tells of its checks when it has ended."""

    def __init__(self, machine: stock_kernel.Machine) -> None:
        self._said = machine.wait()
        self._outcomes = machine.outcomes()

    def __call__(self, check: Check) -> None:
        """Pass, fail or skip as the check did."""
        start = f"{Path(check.module).name}::{check.name}"
        found = {name: end for name, end in self._outcomes.items() if name.partition("[")[0] == start}
        if not found:
            pytest.fail(f"the VM did not come to {start}:\n{self._said}", pytrace=False)
        bad = [f"{name}:\n{end.text}" for name, end in found.items() if end.outcome == "failed"]
        if bad:
            pytest.fail("\n\n".join(bad), pytrace=False)
        for end in found.values():
            if end.outcome == "skipped":
                pytest.skip(end.text)
