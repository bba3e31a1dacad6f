"""A pytest plugin: writes each test's outcome, as soon as it is known, to the file $SNAPMOUNT_RESULTS.

A line of JSON for each test's set-up, call and tear-down, as far as they say something new; so what is known survives
a VM that hangs later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    module, _, test = report.nodeid.rpartition("::")
    name = f"{Path(module).name}::{test}"
    document = {"name": name, "outcome": report.outcome, "text": report.longreprtext}
    if report.skipped and isinstance(report.longrepr, tuple):
        document["text"] = report.longrepr[2]
    with Path(os.environ["SNAPMOUNT_RESULTS"]).open("a") as results:
        results.write(json.dumps(document) + "\n")
