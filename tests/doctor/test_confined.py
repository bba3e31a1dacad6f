"""Enforced AppArmor, and LIO by the whole command: the checks of confined_checks.py, run in the VM that runs LIO's too.

A test machine's kernel may have no AppArmor, as a container's host has none for it; the stock one does.
"""

from __future__ import annotations

import pytest

from ..rig import checks


@pytest.mark.vm
@pytest.mark.parametrize("check", checks.of("doctor/confined_checks.py"), ids=str)
def test_under_a_stock_kernel(report: checks.Report, check: checks.Check) -> None:
    report(check)
