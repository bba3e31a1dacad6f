"""LIO: the checks of lio_checks.py, run under a stock kernel in one VM, each reported here as a test of its own.

The kernel's own initiator (open-iscsi) and libiscsi look at what is published.
"""

from __future__ import annotations

import pytest

from snapmount.publish.iscsi import lio

from ...rig import checks


@pytest.mark.vm
@pytest.mark.parametrize("check", checks.of("publish/iscsi/lio_checks.py"), ids=str)
def test_under_a_stock_kernel(report: checks.Report, check: checks.Check) -> None:
    report(check)


def test_a_kernel_without_lio_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lio, "MODULES", ("no_such_module",))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    fault = lio.missing()
    assert fault is not None
    assert "no module no_such_module" in fault[0] or "modprobe is missing" in fault[0]
    assert fault[1].startswith("sudo apt-get install ")
