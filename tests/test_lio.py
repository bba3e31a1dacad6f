"""LIO: the checks of lio_checks.py, run under a stock kernel in one VM, each reported here as a test of its own.

The kernel's own initiator (open-iscsi) and libiscsi look at what is published.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from snapmount.publish.iscsi import lio

from .rig import stock_kernel

CHECKS = Path(__file__).parent / "lio_checks.py"
DEADLINE_S = 900.0


def checks() -> list[str]:
    """The names of the checks, without loading them."""
    return [
        node.name
        for node in ast.parse(CHECKS.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Boots the VM and runs in it the checks that are selected here; reports one check's outcome as this test's."""
    why = stock_kernel.lacking()
    if why:
        pytest.skip(why)
    try:
        stock_kernel.build()
    except Exception as error:
        pytest.skip(f"there is no stock kernel: {error}")
    selected = [
        item.callspec.params["check"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_under_a_stock_kernel"
    ]
    outcomes, said = stock_kernel.run_tests([f"{CHECKS}::{name}" for name in selected], DEADLINE_S)

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
