"""How `snapmount doctor` judges the facts of a host, and how it tells what it has found."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.remedies import Remedies, distribution
from snapmount.doctor import health
from snapmount.doctor.health import Finding, Place, Program, SELinux, Status

from ..strategies import PROPERTY

GIB = 1 << 30
DEBIAN = Remedies(frozenset({"debian"}), is_root=True, has_systemd=True)
FEDORA = Remedies(frozenset({"fedora"}), is_root=True, has_systemd=True)
USER = Remedies(frozenset({"ubuntu", "debian"}), is_root=False, has_systemd=True)
OTHER = Remedies(frozenset({"gentoo"}), is_root=True, has_systemd=False)

OK, WARNING, PROBLEM = Status.OK, Status.WARNING, Status.PROBLEM


@pytest.mark.parametrize(
    ("os_release", "found"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\n', {"debian"}),
        ("ID=ubuntu\nID_LIKE=debian\n", {"ubuntu", "debian"}),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', {"rocky", "rhel", "centos", "fedora"}),
        ("", set()),
        ("ID='fedora\n", set()),
        ("VERSION_ID=12\nBUG_REPORT_URL=x=y\n", set()),
    ],
)
def test_the_distribution_is_what_os_release_says(os_release: str, found: set[str]) -> None:
    assert distribution(os_release) == found


def test_packages_have_the_names_of_the_distribution() -> None:
    assert DEBIAN.install("tgt", "qemu-img") == "apt-get install tgt qemu-utils"
    assert FEDORA.install("tgt", "qemu-img") == "dnf install scsi-target-utils qemu-img"
    assert USER.install("fuse3") == "sudo apt-get install fuse3"
    assert DEBIAN.install("findmnt", "umount", "wipefs", "dd") == "apt-get install util-linux mount coreutils"
    assert FEDORA.install("findmnt", "umount") == "dnf install util-linux"
    assert OTHER.install("fuse3", "tgt") == "install fuse3, tgt as your distribution has it"


def test_a_daemon_is_started_by_the_service_manager_or_else_by_itself() -> None:
    assert DEBIAN.start("libvirtd", "libvirtd") == "systemctl start libvirtd"
    assert USER.start("libvirtd", "libvirtd") == "sudo systemctl start libvirtd"
    assert OTHER.start("libvirtd", "libvirtd") == "libvirtd -d"


PLACE = Place("/var/tmp/a b", "ext4", 100 * GIB, rotates=False)

JUDGED = [
    (health.kernel("6.1.0-18-amd64", DEBIAN), OK, None),
    (health.kernel("5.3", DEBIAN), OK, None),
    (health.kernel("5.2.99", DEBIAN), PROBLEM, "apt-get upgrade"),
    (health.kernel("4.18.0-553.el8", FEDORA), PROBLEM, "dnf upgrade"),
    (health.kernel("odd", DEBIAN), OK, None),
    (health.allow_other("# user_allow_other\n", USER), WARNING, "echo user_allow_other | sudo tee -a /etc/fuse.conf"),
    (health.allow_other("mount_max = 5\n user_allow_other \n", USER), OK, None),
    (health.allow_other("no_user_allow_other", USER), WARNING, "sudo tee"),
    (health.propagation(True, DEBIAN), OK, None),
    (health.propagation(False, DEBIAN), WARNING, "mount --make-rshared /"),
    (health.qemu("7.2.22", True, DEBIAN), OK, None),
    (health.qemu("2.12.0", False, FEDORA), PROBLEM, "dnf install qemu-kvm libvirt-daemon-kvm"),
    (health.scratch(PLACE, "other"), OK, None),
    (health.scratch(Place("/run/x", "tmpfs", 100 * GIB, False), "other"), PROBLEM, "other"),
    (health.scratch(Place("/x", "nfs4", 100 * GIB, False), "other"), OK, None),
    (health.scratch(Place("/x", "nfs4", 100 * GIB, False, is_default=True), "other"), PROBLEM, "other"),
    (health.scratch(Place("/x", "tmpfs", 100 * GIB, False, is_default=True), "other"), PROBLEM, "other"),
    (health.scratch(Place("/x", "nfs4", GIB, False, is_default=True), "other", has_others=True), WARNING, "other"),
    (health.scratch(Place("/x", "ext4", 63 << 20, False), "other"), PROBLEM, "other"),
    (health.scratch(Place("/x", "xfs", 64 << 20, True), "other"), WARNING, "other"),
    (health.confinement(["none", "dac"], None, DEBIAN), OK, None),
    (health.confinement(["apparmor", "dac"], None, DEBIAN), OK, None),
    (health.confinement(["selinux", "dac"], SELinux(True, True), FEDORA), OK, None),
    (health.confinement(["selinux", "dac"], SELinux(False, False), FEDORA), OK, None),
    (health.confinement(["selinux"], SELinux(True, False), FEDORA), WARNING, "setsebool -P virt_use_fusefs on"),
    (health.kvm(None, "kvm_amd", DEBIAN), OK, None),
    (health.kvm("missing", "kvm_amd", DEBIAN), WARNING, "modprobe kvm_amd"),
    (health.kvm("Permission denied", "kvm_intel", USER), WARNING, "sudo chmod 666 /dev/kvm"),
    (health.kvm("missing", None, DEBIAN), WARNING, "firmware"),
    (health.kvm_of_qemu(64055, DEBIAN), WARNING, "chmod 666 /dev/kvm"),
    (health.runtime_directory("/run/snapmount", None, True, DEBIAN), OK, None),
    (health.runtime_directory("/run/snapmount", 0o700, True, DEBIAN), OK, None),
    (health.runtime_directory("/run/snapmount", 0o710, True, DEBIAN), PROBLEM, "chmod 700 /run/snapmount"),
    (health.runtime_directory("/run/snapmount", 0o700, False, DEBIAN), PROBLEM, "mv /run/snapmount"),
]


@pytest.mark.parametrize(("finding", "status", "remedy"), JUDGED, ids=lambda value: getattr(value, "text", None))
def test_facts_are_judged(finding: Finding, status: Status, remedy: str | None) -> None:
    assert finding.status is status
    if remedy is None:
        assert finding.remedy is None
    else:
        assert finding.remedy is not None
        assert remedy in finding.remedy


def test_a_program_that_every_snapshot_needs_is_a_problem_and_another_a_warning() -> None:
    faults = [(Program("qemu-img"), "is missing"), (Program("wipefs", "--scratch-device"), "is missing")]
    assert health.programs([], DEBIAN) == []
    assert health.programs(faults, DEBIAN) == [
        health.problem("programs", "qemu-img is missing", "apt-get install qemu-utils"),
        health.warning("programs", "wipefs is missing, for --scratch-device", "apt-get install util-linux"),
    ]


def test_the_verdict_is_the_worst_finding() -> None:
    fine, odd, bad = health.ok("a", "x"), health.warning("b", "x", "y"), health.problem("c", "x", "y")
    assert health.verdict([]) is OK
    assert health.verdict([fine, health.skipped("d", "x")]) is OK
    assert health.verdict([fine, odd]) is WARNING
    assert health.verdict([odd, bad, fine]) is PROBLEM


def test_findings_are_told_a_line_each_with_what_mends_them_below() -> None:
    found = [
        health.ok("kernel", "Linux 6.1"),
        health.problem("libvirt", "cannot be reached", "systemctl start libvirtd"),
        health.skipped("QEMU", "libvirt must tell first"),
        health.warning("KVM", "missing", "modprobe kvm_intel"),
    ]
    assert health.text(found).splitlines() == [
        "ok       kernel   Linux 6.1",
        "PROBLEM  libvirt  cannot be reached",
        "  try: systemctl start libvirtd",
        "skipped  QEMU     libvirt must tell first",
        "warning  KVM      missing",
        "  try: modprobe kvm_intel",
        "",
        "1 problem, 1 warning",
    ]
    assert health.text(found[:1]).splitlines()[-1] == "what snapshots need is there"


any_text = st.text(st.characters())


@PROPERTY
@given(st.lists(st.builds(health.problem, any_text, any_text, any_text)), any_text)
def test_what_is_told_cannot_steer_the_terminal_and_json_has_it_all(found: list[Finding], connect: str) -> None:
    for line in health.text(found).splitlines():
        assert line.isprintable()
    document = json.loads(json.dumps(health.document(found, connect)))
    assert [each["text"] for each in document["findings"]] == [finding.text for finding in found]


@PROPERTY
@given(any_text.filter(bool))
def test_a_shell_takes_the_words_of_a_remedy_for_what_they_are(path: str) -> None:
    assert shlex.split(DEBIAN.as_root("chmod", "a+x", path)) == ["chmod", "a+x", path]
    assert shlex.split(USER.as_root("chmod", "a+x", path)) == ["sudo", "chmod", "a+x", path]


@PROPERTY
@given(any_text)
def test_any_os_release_can_be_read(text: str) -> None:
    assert all(word and word == word.lower() for word in distribution(text))
