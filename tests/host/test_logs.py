"""What is logged of that which is tried again and again."""

from __future__ import annotations

import logging

import pytest

from snapmount.host.logs import Problems

log = logging.getLogger(__name__)


def test_the_same_problem_is_told_once_and_another_one_and_one_that_is_met_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = Problems(log, "this cannot be done yet: %s")
    for problem in ("100 % busy", "100 % busy", "gone", "100 % busy"):
        problems.met(problem)
    problems.over()
    problems.met("100 % busy")
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert told == ["100 % busy", "gone", "100 % busy", "100 % busy"]
