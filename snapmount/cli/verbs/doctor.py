"""`snapmount doctor`: what this host lacks; or which sources serve the disks of a VM, and at what cost."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ... import doctor
from ...core import names
from ...doctor import health, service
from ...errors import MissingError
from ...host import interruptible, programs
from .. import output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def run(arguments: argparse.Namespace) -> int:
    return _of_vm(arguments) if arguments.vm else _of_host(arguments)


def _of_host(arguments: argparse.Namespace) -> int:
    names.check_utf_8(arguments.scratch_dir or "", "the scratch directory")
    subject = doctor.Subject.here(arguments.connect, arguments.scratch_dir and os.path.abspath(arguments.scratch_dir))
    connect = doctor.uri(subject)
    findings = interruptible.run(doctor.examine, subject)
    output.print_either(arguments.json, partial(health.document, findings, connect), partial(health.text, findings))
    return _exit_code(findings)


def _of_vm(arguments: argparse.Namespace) -> int:
    from ...doctor import vm  # which needs libvirt, as `doctor` alone does not
    from .. import requests

    request = requests.look(arguments)
    survey = interruptible.run(vm.survey, request)
    findings = service.findings(survey, programs.remedies())
    document = health.document(findings, request.connect) | service.document(survey)
    text = f"{service.text(survey)}\n{health.text(findings)}"
    output.print_either(arguments.json, lambda: document, lambda: text)
    return _exit_code(findings)


def _exit_code(findings: Sequence[health.Finding]) -> int:
    return MissingError.exit_code if health.verdict(findings) is health.Status.PROBLEM else 0
