"""Which sources can take a snapshot of a VM's disks, and at what cost: how the answers are judged and told.

They are got in vm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core import names, units
from ..core.cost import Cost, Need
from ..core.document import to_document
from ..core.leftout import LeftOut
from ..core.remedies import Remedies
from . import health
from .health import Finding

CHECK = "sources"


@dataclass(frozen=True)
class Refusal:
    """Why a source cannot take a snapshot."""

    why: str
    remedy: str | None = None


@dataclass(frozen=True)
class Service:
    """A source can take a snapshot."""

    cost: Cost
    warnings: tuple[str, ...] = ()  # that come with it


@dataclass(frozen=True)
class Row:
    """What a source answers for one disk."""

    disk: str
    source: str
    answer: Service | Refusal


@dataclass(frozen=True)
class Lack:
    """A program that is missing, and would serve disks of the VM."""

    program: str
    package: str
    disks: tuple[str, ...]
    would: str  # what it would do: 'take snapshots of logical volumes'


@dataclass(frozen=True)
class Survey:
    """A VM as all sources see it."""

    vm: str
    uuid: str
    is_running: bool
    rows: tuple[Row, ...]  # one a disk and source, in the order of the disks, then of the sources
    wholes: tuple[tuple[str, Service | Refusal], ...]  # by source: what it answers for all these disks at once
    left_out: tuple[LeftOut, ...]
    lacking: tuple[Lack, ...] = ()


def whole(rows: Sequence[Row]) -> Service | Refusal | None:
    """What a source that answers so for each disk answers for the whole VM; None if it must be asked."""
    refused = [row.disk for row in rows if isinstance(row.answer, Refusal)]
    if refused:
        return Refusal(f"it cannot take {names.listed(refused)}")
    return rows[0].answer if len(rows) == 1 else None


# -- judging -----------------------------------------------------------------------------------------------------------


def findings(survey: Survey, remedies: Remedies) -> list[Finding]:
    """Whether a snapshot of the VM can be taken, and which programs would serve it better."""
    found = [_lacking(lack, remedies) for lack in survey.lacking]
    serving = [(source, answer.cost) for source, answer in survey.wholes if isinstance(answer, Service)]
    if serving:
        told = "; ".join(f"{source}, {_pause(cost)}" for source, cost in serving)
        return [health.ok(CHECK, f"{survey.vm} as a whole can be taken by {told}"), *found]
    why = [f"{source}: {answer.why}" for source, answer in survey.wholes if isinstance(answer, Refusal)]
    text = f"no source can take all disks of {survey.vm} ({'; '.join(why)})"
    return [health.problem(CHECK, text, _remedy(survey)), *found]


def _lacking(lack: Lack, remedies: Remedies) -> Finding:
    text = f"{lack.program} is missing, which would {lack.would} for {names.listed(lack.disks)}"
    return health.warning("programs", text, remedies.install(lack.package))


def _remedy(survey: Survey) -> str:
    """The command that takes most of the disks; or else what a source says would let it take one."""
    by_source = {source: [row for row in survey.rows if row.source == source] for source, _ in survey.wholes}
    served = {
        source: [row.disk for row in rows if isinstance(row.answer, Service)] for source, rows in by_source.items()
    }
    best = max(served, key=lambda source: len(served[source]))
    rest = [row.disk for row in by_source[best] if row.disk not in served[best]]
    if served[best] and rest:
        excluded = [word for disk in rest for word in ("--exclude-disk", disk)]
        return names.command("snapmount", survey.vm, "MOUNTPOINT", "--source", best, *excluded)
    refusals = [answer for _, answer in survey.wholes] + [row.answer for row in survey.rows]
    told = [answer.remedy for answer in refusals if isinstance(answer, Refusal) and answer.remedy]
    return told[0] if told else names.command("snapmount", "doctor")


# -- telling -----------------------------------------------------------------------------------------------------------


def document(survey: Survey) -> dict[str, Any]:
    """What the JSON of `doctor VM` has beside that of `doctor`; see JSON in the man page."""
    return {
        "vm": {"name": survey.vm, "uuid": survey.uuid, "running": survey.is_running},
        "sources": [{"source": source, **_answer(answer)} for source, answer in survey.wholes],
        "disks": [{"disk": row.disk, "source": row.source, **_answer(row.answer)} for row in survey.rows],
        "left_out": [to_document(each) for each in survey.left_out],
    }


def _answer(answer: Service | Refusal) -> dict[str, Any]:
    cost = answer.cost if isinstance(answer, Service) else None
    return {
        "serves": cost is not None,
        "means": cost and cost.means,
        "pause_s": cost and cost.pause_s,
        "guest_pays": cost and cost.guest_pays,
        "needs": [to_document(need) for need in cost.needs] if cost else [],
        "warnings": list(answer.warnings) if isinstance(answer, Service) else [],
        "why_not": answer.why if isinstance(answer, Refusal) else None,
        "remedy": answer.remedy if isinstance(answer, Refusal) else None,
    }


def text(survey: Survey) -> str:
    """A line for each disk and source, and below it what the guest pays, or what would let the source take it."""
    cells = [_cells(row) for row in survey.rows] + [
        ("no", each.name, "", f"left out: {each.why}") for each in survey.left_out
    ]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:3]]
    lines = []
    for index, row in enumerate(cells):
        *aligned, last = row
        start = "  ".join(f"{cell:{width}}" for cell, width in zip(aligned, widths, strict=True))
        lines.append(f"{start}  {last}")
        lines += _below(survey.rows[index].answer) if index < len(survey.rows) else []
    return "".join(f"{names.printable(line)}\n" for line in lines)


def _cells(row: Row) -> tuple[str, str, str, str]:
    if isinstance(row.answer, Refusal):
        return "no", row.disk, row.source, row.answer.why
    cost = row.answer.cost
    told = [_pause(cost), *map(_need, cost.needs)]
    return "yes", row.disk, f"{row.source} ({cost.means})", "; ".join(told)


def _below(answer: Service | Refusal) -> list[str]:
    if isinstance(answer, Refusal):
        return [f"  try: {answer.remedy}"] if answer.remedy else []
    pays = [f"  the guest pays: {answer.cost.guest_pays}"] if answer.cost.guest_pays else []
    return [*pays, *(f"  warning: {warning}" for warning in answer.warnings)]


def _pause(cost: Cost) -> str:
    return f"paused for about {units.moment(cost.pause_s)}" if cost.pause_s else "no pause"


def _need(need: Need) -> str:
    return f"up to {units.size(need.most_bytes)} in {need.place}, {units.size(need.free_bytes)} free"
