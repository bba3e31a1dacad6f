"""How `snapmount doctor VM` judges what the sources answer, and how it tells that."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from snapmount.core.cost import Cost, Need
from snapmount.core.leftout import LeftOut
from snapmount.core.remedies import Remedies
from snapmount.doctor import service
from snapmount.doctor.health import Status
from snapmount.doctor.service import Lack, Refusal, Row, Service, Survey

GIB = 1 << 30
DEBIAN = Remedies(frozenset({"debian"}), is_root=True, has_systemd=True)
FEDORA = Remedies(frozenset({"fedora"}), is_root=True, has_systemd=True)
PULLED = Service(Cost("backup job", 0.0, "copies", (Need("/var/tmp", 20 * GIB, 10 * GIB),)), ("space is short",))
CLONED = Service(Cost("btrfs", 0.12, ""))
OFF = Refusal("vm1 is not shut off", "virsh shutdown vm1")
EXT4 = Refusal("btrfs: lies on ext4")
SURVEY = Survey(
    vm="vm1",
    uuid="6c0a",
    is_running=True,
    rows=(
        Row("vda", "pull", PULLED),
        Row("vda", "offline", OFF),
        Row("vda", "storage", CLONED),
        Row("vdb", "pull", PULLED),
        Row("vdb", "offline", OFF),
        Row("vdb", "storage", EXT4),
    ),
    wholes=(("pull", PULLED), ("offline", Refusal("it cannot take vda and vdb")), ("storage", Refusal("not vdb"))),
    left_out=(LeftOut("sda", "CD-ROM"),),
)


def unserved() -> Survey:
    """The same, but nothing takes vdb."""
    rows = tuple(replace(row, answer=EXT4) if row.disk == "vdb" else row for row in SURVEY.rows)
    return replace(SURVEY, rows=rows, wholes=tuple((kind, Refusal("not vdb")) for kind, _ in SURVEY.wholes))


def test_the_vm_is_served_by_what_takes_each_of_its_disks() -> None:
    assert service.whole([Row("vda", "x", PULLED)]) == PULLED
    assert service.whole([Row("vda", "x", PULLED), Row("vdb", "x", PULLED)]) is None
    assert service.whole([Row("vda", "x", PULLED), Row("vdb", "x", EXT4)]) == Refusal("it cannot take vdb")


def test_all_is_well_if_one_source_takes_all_disks() -> None:
    (finding,) = service.findings(SURVEY, DEBIAN)
    assert finding.status is Status.OK
    assert finding.text == "vm1 as a whole can be taken by pull, no pause"


def test_a_disk_that_nothing_takes_is_a_problem_which_leaving_it_out_mends() -> None:
    (finding,) = service.findings(unserved(), DEBIAN)
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("no source can take all disks of vm1 (pull: not vdb; ")
    assert finding.remedy == "snapmount vm1 MOUNTPOINT --source pull --exclude-disk vdb"


def test_where_no_disk_can_be_taken_the_remedy_is_what_a_source_says() -> None:
    none = replace(unserved(), rows=tuple(Row(row.disk, row.source, OFF) for row in SURVEY.rows))
    assert service.findings(none, DEBIAN)[0].remedy == "virsh shutdown vm1"
    mute = replace(none, rows=tuple(Row(row.disk, row.source, EXT4) for row in SURVEY.rows))
    assert service.findings(mute, DEBIAN)[0].remedy == "snapmount doctor"


@pytest.mark.parametrize(
    ("remedies", "remedy"), [(DEBIAN, "apt-get install dmsetup"), (FEDORA, "dnf install device-mapper")]
)
def test_a_program_that_would_serve_a_disk_is_named_with_the_command_that_installs_it(
    remedies: Remedies, remedy: str
) -> None:
    lack = Lack("dmsetup", "dmsetup", ("vda", "vdb"), "look after thin pools")
    _, finding = service.findings(replace(SURVEY, lacking=(lack,)), remedies)
    assert (finding.status, finding.remedy) == (Status.WARNING, remedy)
    assert finding.text == "dmsetup is missing, which would look after thin pools for vda and vdb"


def test_the_text_has_a_line_for_each_disk_and_source_and_the_cost_or_the_reason() -> None:
    assert service.text(SURVEY).splitlines() == [
        "yes  vda  pull (backup job)  no pause; up to 10 GiB in /var/tmp, 20 GiB free",
        "  the guest pays: copies",
        "  warning: space is short",
        "no   vda  offline            vm1 is not shut off",
        "  try: virsh shutdown vm1",
        "yes  vda  storage (btrfs)    paused for about 120 ms",
        "yes  vdb  pull (backup job)  no pause; up to 10 GiB in /var/tmp, 20 GiB free",
        "  the guest pays: copies",
        "  warning: space is short",
        "no   vdb  offline            vm1 is not shut off",
        "  try: virsh shutdown vm1",
        "no   vdb  storage            btrfs: lies on ext4",
        "no   sda                     left out: CD-ROM",
    ]


def test_what_a_guest_or_a_hook_has_named_reaches_no_terminal_as_it_is() -> None:
    evil = replace(SURVEY, rows=(Row("vda", "storage", Refusal("\x1b[2J", "\x1b[2J")),))
    assert "\x1b" not in service.text(evil)


def test_the_document_has_the_same_keys_for_what_serves_and_what_does_not() -> None:
    document = json.loads(json.dumps(service.document(SURVEY)))
    assert document["vm"] == {"name": "vm1", "uuid": "6c0a", "running": True}
    assert document["left_out"] == [{"name": "sda", "why": "CD-ROM"}]
    assert document["disks"][0] == {
        "disk": "vda",
        "source": "pull",
        "serves": True,
        "means": "backup job",
        "pause_s": 0.0,
        "guest_pays": "copies",
        "needs": [{"place": "/var/tmp", "free_bytes": 20 * GIB, "most_bytes": 10 * GIB}],
        "warnings": ["space is short"],
        "why_not": None,
        "remedy": None,
    }
    assert document["disks"][1] == {
        "disk": "vda",
        "source": "offline",
        "serves": False,
        "means": None,
        "pause_s": None,
        "guest_pays": None,
        "needs": [],
        "warnings": [],
        "why_not": "vm1 is not shut off",
        "remedy": "virsh shutdown vm1",
    }
    assert [set(each) - {"source"} for each in document["sources"]] == [
        set(document["disks"][0]) - {"disk", "source"}
    ] * 3
