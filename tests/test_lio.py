"""LIO: the checks of lio_checks.py, run under a stock kernel in one VM, each reported here as a test of its own.

The kernel's own initiator (open-iscsi) and libiscsi look at what is published.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from snapmount.publish.iscsi import lio

from .conftest import LIO_CHECKS
from .rig import stock_kernel


def checks() -> list[str]:
    """The names of the checks, without loading them."""
    return [
        node.name
        for node in ast.parse(LIO_CHECKS.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def report(lio_vm: stock_kernel.Machine | str) -> Callable[[str], None]:
    """Reports one check's outcome as that of the test; waits for the VM, which runs them all."""
    if isinstance(lio_vm, str):
        pytest.skip(lio_vm)
    said = lio_vm.wait()
    outcomes = lio_vm.outcomes()

    def report_one(check: str) -> None:
        found = {name: end for name, end in outcomes.items() if name.partition("[")[0] == check}
        if not found:
            pytest.fail(f"the VM did not come to {check}:\n{said}", pytrace=False)
        bad = [f"{name}:\n{end.text}" for name, end in found.items() if end.outcome == "failed"]
        if bad:
            pytest.fail("\n\n".join(bad), pytrace=False)
        for end in found.values():
            if end.outcome == "skipped":
                pytest.skip(end.text)

    return report_one


@pytest.mark.vm
@pytest.mark.parametrize("check", checks())
def test_under_a_stock_kernel(report: Callable[[str], None], check: str) -> None:
    report(check)


def test_a_kernel_without_lio_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lio, "MODULES", ("no_such_module",))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    fault = lio.missing()
    assert fault is not None
    assert "no module no_such_module" in fault[0] or "modprobe is missing" in fault[0]
    assert fault[1].startswith("sudo apt-get install ")
