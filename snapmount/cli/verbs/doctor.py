"""`snapmount doctor`: what this host lacks."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ... import doctor
from ...core import names
from ...doctor import health
from ...errors import MissingError
from ...host import interruptible
from .. import output

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    names.check_utf_8(arguments.scratch_dir or "", "the scratch directory")
    subject = doctor.Subject.here(arguments.connect, arguments.scratch_dir and os.path.abspath(arguments.scratch_dir))
    connect = doctor.uri(subject)
    findings = interruptible.run(doctor.examine, subject)
    output.print_either(arguments.json, partial(health.document, findings, connect), partial(health.text, findings))
    return MissingError.exit_code if health.verdict(findings) is health.Status.PROBLEM else 0
