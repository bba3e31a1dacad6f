"""The command line: a verb or none, options before and after it, and an exit code that says what went wrong."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
from importlib import import_module

import pytest

from snapmount import __version__, errors
from snapmount.boot.launch import BootRequest
from snapmount.cli import arguments, commands, requests
from snapmount.cli.arguments import grammar
from snapmount.errors import SnapmountError, UsageError


def documented_codes() -> list[int]:
    return [int(code) for code in re.findall(r"^  (\d+)  \S", arguments.EXIT_CODES, re.MULTILINE)]


def error_classes() -> list[type[SnapmountError]]:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    return [each for each in classes if issubclass(each, SnapmountError)]


# -- which verb --------------------------------------------------------------------------------------------------------


def test_take_is_meant_where_the_first_word_is_no_verb() -> None:
    parsed = arguments.parse(["vm1", "/mnt/snap"])
    assert (parsed.vm, parsed.mountpoint) == ("vm1", "/mnt/snap")
    assert parsed == arguments.parse(["take", "vm1", "/mnt/snap"])


def test_take_has_its_documented_defaults() -> None:
    parsed = vars(arguments.parse(["vm1", "/mnt/snap"]))
    assert parsed.pop("verb") == "take"
    assert parsed.pop("verbs_meant") == []
    assert parsed == {
        "vm": "vm1",
        "mountpoint": "/mnt/snap",
        "connect": None,
        "disk": [],
        "exclude_disk": [],
        "scratch_dir": None,
        "scratch_limit": None,
        "scratch_reserve": False,
        "scratch_device": [],
        "storage": [],
        "max_pause": None,
        "source": "auto",
        "quiesce": False,
        "checkpoint": None,
        "since": None,
        "backing": [],
        "allow_other": False,
        "read_timeout": 30.0,
        "cluster_size": None,
        "iscsi": False,
        "portal": [],
        "initiator": [],
        "mutual": False,
        "secret_file": None,
        "target": "auto",
        "initiator_kind": None,
        "expire": None,
        "foreground": False,
        "json": False,
        "verbose": False,
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["--json", "--disk", "vda", "-c", "qemu:///system", "vm1", "/mnt"],
        ["vm1", "/mnt", "--json", "--disk", "vda", "-c", "qemu:///system"],
        ["--json", "vm1", "--disk", "vda", "/mnt", "-c", "qemu:///system"],
        ["--disk=vda", "-cqemu:///system", "--json", "vm1", "/mnt"],
        ["--json", "--disk", "vda", "take", "-c", "qemu:///system", "vm1", "/mnt"],
        ["take", "vm1", "/mnt", "--disk", "vda", "--json", "--connect=qemu:///system"],
        ["--connect", "qemu:///system", "--disk", "vda", "--json", "--", "vm1", "/mnt"],
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere(argv: list[str]) -> None:
    assert arguments.parse(argv) == arguments.parse(
        ["take", "--json", "--disk", "vda", "-c", "qemu:///system", "vm1", "/mnt"]
    )


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        (["--json", "list"], ["list", "--json"]),
        (["--json", "show", "vm1"], ["show", "vm1", "--json"]),
        (["-v", "delete", "vm1", "vm2"], ["delete", "vm1", "vm2", "-v"]),
        (["--verbose", "umount", "/mnt"], ["umount", "/mnt", "--verbose"]),
        (["-c", "qemu:///system", "list"], ["list", "--connect", "qemu:///system"]),
        (["-cqemu:///system", "show", "vm1"], ["show", "vm1", "-c", "qemu:///system"]),
        (["ls", "--json"], ["list", "--json"]),
        (["rm", "-vf", "vm1"], ["delete", "vm1", "--verbose", "--force"]),
        (["-vc", "qemu:///system", "delete", "vm1"], ["delete", "vm1", "-v", "--connect=qemu:///system"]),
    ],
    ids=lambda argv: " ".join(argv),
)
def test_a_verb_may_stand_after_its_options(argv: list[str], same: list[str]) -> None:
    parsed = arguments.parse(argv)
    assert parsed == arguments.parse(same)
    assert not hasattr(parsed, "vm"), "take was not meant"


def test_each_verb_has_a_command_of_its_own() -> None:
    lines = [["vm1", "/mnt"], ["boot", "vm1"], ["attach", "vm1", "vm2"], ["detach", "vm1"]]
    lines += [["list"], ["show", "vm1"], ["delete", "vm1"], ["umount", "/mnt"], ["recover"], ["doctor"]]
    for verb in {arguments.parse(line).verb for line in lines}:
        assert callable(import_module(f"snapmount.cli.verbs.{verb}").run)


@pytest.mark.parametrize("verb", sorted(grammar.parser()[1]))
def test_each_verb_is_told_of_while_it_works_with_what_it_works_on(verb: str) -> None:
    words = [f"some-{word.name}" for word in grammar.parser()[1][verb].words()]
    if verb != "help":
        doing = arguments.doing(arguments.parse([verb, *words]))
        assert [word for word in words if word in doing] or verb in ("list", "ls", "take", "recover", "doctor")


def test_no_option_but_keep_takes_a_value_with_one_verb_and_none_with_another() -> None:
    """Which word is the verb is known only after the options' values are, if they stand before it."""
    forms = [form for parser in grammar.parser()[1].values() for form in parser.options().items()]
    assert {
        (name, form.takes_value)
        for name, form in forms
        if (name, not form.takes_value) in {(name, form.takes_value) for name, form in forms}
    } == {("--keep", False), ("--keep", True)}
    assert arguments.parse(["boot", "--keep", "vm1"]).source == "vm1"
    assert arguments.parse(["--keep", "boot", "vm1"]).source == "vm1"
    for argv in (
        ["checkpoints", "--keep", "3", "vm1"],
        ["checkpoints", "vm1", "--keep=3"],
        ["--keep=3", "checkpoints", "vm1"],
    ):
        parsed = arguments.parse(argv)
        assert (parsed.vm, parsed.keep) == ("vm1", 3)


def test_a_checkpoint_has_a_name_only_if_it_is_part_of_the_word() -> None:
    parsed = arguments.parse(["--checkpoint", "vm1", "/mnt/snap"])
    assert (parsed.vm, parsed.checkpoint) == ("vm1", True)
    assert arguments.parse(["vm1", "/mnt/snap", "--checkpoint=monday"]).checkpoint == "monday"


def test_the_value_of_an_option_may_begin_with_a_dash() -> None:
    assert arguments.parse(["boot", "vm1", "--name", "-copy"]).name == "-copy"
    assert arguments.parse(["boot", "vm1", "--wait-for", "--- login"]).wait_for == "--- login"


@pytest.mark.parametrize("option", ["--disk", "--exclude-disk", "--scratch-dir", "--connect", "-c"])
def test_the_value_of_an_option_is_no_verb(option: str) -> None:
    parsed = arguments.parse([option, "list", "vm1", "/mnt"])
    assert (parsed.vm, parsed.mountpoint) == ("vm1", "/mnt")
    assert parsed == arguments.parse(["take", "vm1", "/mnt", option, "list"])


@pytest.mark.parametrize("vm", ["list", "delete", "take", "-v", "--json", "--help", "--"])
def test_a_vm_may_have_any_name_after_two_dashes(vm: str) -> None:
    for argv in (["--", vm, "/mnt"], ["take", "--", vm, "/mnt"], ["-v", "--", vm, "/mnt"]):
        parsed = arguments.parse(argv)
        assert (parsed.vm, parsed.mountpoint, parsed.json) == (vm, "/mnt", False)


def test_a_vm_that_is_named_as_a_verb_may_stand_after_take() -> None:
    assert arguments.parse(["take", "list", "/mnt"]).vm == "list"
    assert arguments.parse(["take", "take", "/mnt"]).vm == "take"


def test_snapshots_and_mountpoints_may_have_any_name_after_two_dashes() -> None:
    assert arguments.parse(["delete", "--", "-v", "list"]).snapshots == ["-v", "list"]
    assert arguments.parse(["show", "--", "--json"]).snapshot == "--json"
    assert arguments.parse(["umount", "--", "-mnt"]).mountpoint == "-mnt"


def test_a_single_dash_is_a_name_like_another() -> None:
    assert arguments.parse(["-", "/mnt"]).vm == "-"


def test_disks_are_named_one_option_each() -> None:
    parsed = arguments.parse(["--disk", "vda", "vm1", "--disk=vdb", "/mnt", "--exclude-disk", "vdc"])
    assert (parsed.disk, parsed.exclude_disk) == (["vda", "vdb"], ["vdc"])
    assert arguments.parse(["vm1", "/mnt"]).disk == [], "nothing is kept from the last time"


def test_options_may_stand_between_snapshots() -> None:
    parsed = arguments.parse(["delete", "vm1", "-v", "vm2", "--force"])
    assert (parsed.snapshots, parsed.verbose, parsed.force) == (["vm1", "vm2"], True, True)


def test_with_iscsi_the_mountpoint_may_be_left_out() -> None:
    assert arguments.parse(["--iscsi", "vm1"]).mountpoint is None
    assert arguments.parse(["vm1", "--iscsi", "/mnt", "--portal", "::1", "--portal", "127.0.0.1"]).mountpoint == "/mnt"


def test_boot_has_its_documented_defaults() -> None:
    parsed = vars(arguments.parse(["boot", "vm1"]))
    assert parsed.pop("verb") == "boot"
    assert parsed.pop("verbs_meant") == []
    assert parsed == {
        "source": "vm1",
        "disk": [],
        "exclude_disk": [],
        "scratch_dir": None,
        "scratch_limit": None,
        "scratch_reserve": False,
        "scratch_device": [],
        "connect": None,
        "name": None,
        "memory": None,
        "vcpus": None,
        "network": "none",
        "overlay_dir": None,
        "keep": False,
        "wait_for": None,
        "wait_timeout": None,
        "console": False,
        "json": False,
        "verbose": False,
    }
    assert requests.boot(arguments.parse(["boot", "vm1"])) == BootRequest(wait_timeout_s=300.0)


def test_more_than_one_snapshot_can_be_deleted() -> None:
    assert arguments.parse(["delete", "vm1", "3f2a91bc", "/mnt"]).snapshots == ["vm1", "3f2a91bc", "/mnt"]


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("0.5", 0.5), ("1e3", 1000.0)])
def test_a_read_timeout_is_a_positive_number_of_seconds(text: str, seconds: float) -> None:
    assert arguments.parse(["vm1", "/mnt", "--read-timeout", text]).read_timeout == seconds
    assert arguments.parse([f"--read-timeout={text}", "vm1", "/mnt"]).read_timeout == seconds


@pytest.mark.parametrize("text", ["0", "-0.0", "-5", "nan", "inf", "-inf", "1e999"])
def test_no_other_number_is_a_read_timeout(text: str) -> None:
    with pytest.raises(UsageError, match=f"--read-timeout: {re.escape(text)} is not a positive number of seconds"):
        arguments.parse(["vm1", "/mnt", f"--read-timeout={text}"])


@pytest.mark.parametrize("text", ["", "soon", "5s", "0x10"])
def test_a_read_timeout_that_is_no_number_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(UsageError, match=f"--read-timeout: .*{re.escape(text)}"):
        arguments.parse(["vm1", "/mnt", "--read-timeout", text])


# -- bad usage, help and exit codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message", "remedy"),
    [
        (["vm1"], "MOUNTPOINT", "snapmount take --help"),
        (["take"], "VM", "snapmount take --help"),
        (["--"], "VM", "snapmount take --help"),
        (["vm1", "/mnt", "--portal", "::1"], "--portal needs --iscsi", "snapmount take --help"),
        (
            ["vm1", "/mnt", "--initiator", "iqn.1993-08.org.debian:01:abc"],
            "--initiator needs --iscsi",
            "snapmount take --help",
        ),
        (["vm1", "/mnt", "--mutual"], "--mutual needs --iscsi", "snapmount take --help"),
        (["vm1", "/mnt", "--secret-file", "f"], "--secret-file needs --iscsi", "snapmount take --help"),
        (["vm1", "/mnt", "--target", "tgt"], "--target needs --iscsi", "snapmount take --help"),
        (["vm1", "/mnt", "--for", "qemu"], "--for needs --iscsi", "snapmount take --help"),
        (["--iscsi", "vm1", "--for", "qemu", "--json"], "--for and --json do not go together", "no --for"),
        (["show", "vm1", "--for", "all", "--json"], "--for and --json do not go together", "no --for"),
        (["show", "vm1", "--for", "scst"], "invalid choice: 'scst'", "snapmount show --help"),
        (["--iscsi", "vm1", "--target", "scst"], "invalid choice: 'scst'", "snapmount take --help"),
        (["vm1", "/mnt", "--expire", "soon"], "'soon' is no span of time", "snapmount take --help"),
        (["vm1", "/mnt", "--expire", "0"], "'0' is not between a second", "snapmount take --help"),
        (["vm1", "/mnt", "more"], "take takes VM [MOUNTPOINT]; 'more' is too much", "snapmount take --help"),
        (["vm1", "/mnt", "--no-such-option"], "there is no option --no-such-option", "snapmount take --help"),
        (["-x"], "there is no option -x", "snapmount --help"),
        (["-c"], "--connect needs a value: --connect URI", "snapmount --help"),
        (["vm1", "/mnt", "--disk"], "--disk needs a value: --disk NAME", "snapmount take --help"),
        (["vm1", "/mnt", "--disk", "--json"], "NAME, and --json is an option", "snapmount take --help"),
        (["--disk", "--", "vm1", "/mnt"], "--disk needs a value: --disk NAME", "snapmount take --help"),
        (["vm1", "/mnt", "--quiesce=yes"], "--quiesce takes no value, and 'yes' is given", "snapmount take --help"),
        (["vm1", "/mnt", "--exclude", "vda"], "did you mean --exclude-disk?", "snapmount take --help"),
        (
            ["boot", "vm1", "--portal", "::1"],
            "boot has no option --portal; it has --verbose, --json, --connect,",
            "snapmount boot --help",
        ),
        (["boot", "--portal", "vm1"], "boot has no option --portal", "snapmount boot --help"),
        (["rm", "vm1", "--lazy"], "delete has no option --lazy; it has", "snapmount delete --help"),
        (
            ["list", "--scratch-dir", "/x"],
            "list has no option --scratch-dir; it has --json, --connect",
            "snapmount list --help",
        ),
        (
            ["--disk", "vm1", "/mnt"],
            "MOUNTPOINT is missing, or --iscsi; 'vm1' is the value of --disk",
            "snapmount take --help",
        ),
        (
            ["boot", "--wait-for", "vm1"],
            "needs a VM-OR-SNAPSHOT; 'vm1' is the value of --wait-for",
            "snapmount boot --help",
        ),
        (
            ["--iscsi", "--portal", "vm1"],
            "a VM or a verb is missing; 'vm1' is the value of --portal",
            "snapmount --help",
        ),
        (["attach", "vm1"], "attach needs a SNAPSHOT and a HELPER-VM", "snapmount attach --help"),
        (["umount", "-fl", "/mnt"], "-l/--lazy: not allowed with argument -f/--force", "snapmount umount --help"),
        (["help", "boot", "vm1"], "help takes [VERB]; 'vm1' is too much", "snapmount help --help"),
        (["help", "vm1"], "there is no verb 'vm1'", "snapmount --help"),
        (["help", "atach"], "there is no verb 'atach'; did you mean attach or detach?", "snapmount --help"),
        (["vm1", "/mnt", "--read-timeout", "0"], "0 is not a positive number", "snapmount take --help"),
        (["vm1", "/mnt", "--cluster-size", "4M"], "4M is not a power of two from 4K to 2M", "snapmount take --help"),
        (["vm1", "/mnt", "--cluster-size", "2K"], "2K is not a power of two from 4K to 2M", "snapmount take --help"),
        (["vm1", "/mnt", "--cluster-size", "96K"], "96K is not a power of two", "snapmount take --help"),
        (["vm1", "/mnt", "--cluster-size", "64"], "'64' is no size such as", "snapmount take --help"),
        (["vm1", "/mnt", "--max-pause", "-1"], "-1 is not a number of seconds, or 0", "snapmount take --help"),
        (["vm1", "/mnt", "--storage", "vda"], "vda is not of the form vda=DRIVER", "snapmount take --help"),
        (["vm1", "/mnt", "--source", "pull", "--max-pause", "1"], "--max-pause is for --source", "--source storage"),
        (["vm1", "/mnt", "--source", "offline", "--storage", "a=b"], "--storage is for --source", "--source storage"),
        (["boot"], "VM-OR-SNAPSHOT", "snapmount boot --help"),
        (["boot", "vm1", "--vcpus", "0"], "0 is not a number from 1 to 4096", "snapmount boot --help"),
        (["boot", "vm1", "--memory", "2"], "'2' is no size such as 512M or 2G", "snapmount boot --help"),
        (["boot", "vm1", "--wait-timeout", "soon"], "'soon' is no span of time", "snapmount boot --help"),
        (["boot", "vm1", "--wait-timeout", "1m"], "--wait-timeout needs --wait-for", "snapmount boot --help"),
        (["boot", "vm1", "--console", "--json"], "--console and --json do not go", "snapmount boot --help"),
        (["--json"], "a VM or a verb is missing", "snapmount --help"),
        (["-v", "--disk", "vda"], "a VM or a verb is missing", "snapmount --help"),
        (["list", "vm1"], "list takes no other words; 'vm1' is too much", "snapmount list --help"),
        (["list", "-v"], "list has no option -v; it has --json, --connect", "snapmount list --help"),
        (["show"], "SNAPSHOT", "snapmount show --help"),
        (["show", "vm1", "vm2"], "show takes SNAPSHOT; 'vm2' is too much", "snapmount show --help"),
        (["delete"], "SNAPSHOT", "snapmount delete --help"),
        (["umount"], "MOUNTPOINT", "snapmount umount --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_explained_on_standard_error_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str, remedy: str
) -> None:
    assert commands.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith("snapmount: ")
    assert message in first
    assert second == f"  try: {remedy}"


@pytest.mark.parametrize(
    ("argv", "verbs"),
    [
        (["lst"], "list"),
        (["status"], "list or show"),
        (["staus"], "list or show or boot"),
        (["delte"], "delete"),
        (["atach", "vm1", "vm2"], "attach or detach"),
        (["unmount", "/mnt", "more"], "umount"),
        (["inspect"], "show"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_verb_that_was_mistyped_is_named(argv: list[str], verbs: str) -> None:
    with pytest.raises(UsageError) as caught:
        arguments.parse(argv)
    assert caught.value.message.endswith(f"; did you mean the verb {verbs}?")


def test_a_vm_may_be_called_like_a_verb_nearly() -> None:
    """That it may have been meant for one is told where no VM has the name: when libvirt has been asked."""
    parsed = arguments.parse(["delet", "vm1"])
    assert (parsed.verb, parsed.vm, parsed.verbs_meant) == ("take", "delet", ["delete"])
    assert requests.take(parsed).verbs_meant == ("delete",)
    assert arguments.parse(["take", "delet", "vm1"]).verbs_meant == []
    assert arguments.parse(["vm1", "/mnt"]).verbs_meant == []
    assert arguments.parse(["/mnt", "/mnt"]).verbs_meant == []


def test_what_is_complained_of_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["vm1", "/mnt", "\x1b[2J\nmore"]) == 2
    printed = capsys.readouterr().err
    assert r"\x1b[2J\nmore" in printed
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 2


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]], ids=["nothing", "--help", "-h", "help"])
def test_help_tells_the_verbs_and_the_exit_codes(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        commands.main(argv)
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert arguments.EXIT_CODES in printed.out
    for verb in ("take", "boot", "list", "show", "delete", "recover", "umount"):
        assert re.search(rf"^    {verb} ", printed.out, re.MULTILINE), verb


@pytest.mark.parametrize("verb", ["take", "boot", "list", "show", "delete", "recover", "umount"])
def test_each_verb_has_its_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    for argv in ([verb, "--help"], ["--help", verb], ["help", verb], [verb, "too", "many", "words", "-h"]):
        with pytest.raises(SystemExit) as caught:
            commands.main(argv)
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: snapmount {verb} ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        commands.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"snapmount {__version__}\n"


def test_each_error_has_an_exit_code_of_its_own_and_each_code_is_documented() -> None:
    codes = [each.exit_code for each in error_classes()]
    assert len(codes) > 5
    assert len(set(codes)) == len(codes)
    assert sorted([0, *codes]) == documented_codes()


@pytest.mark.parametrize("text", ["", "soon", "5s", "0x10"])
def test_a_read_timeout_that_is_no_number_is_explained_without_names_of_our_code(text: str) -> None:
    with pytest.raises(UsageError, match=r"--read-timeout: .*is not a positive number of seconds"):
        arguments.parse(["vm1", "/mnt", "--read-timeout", text])


def test_an_option_must_be_written_in_full() -> None:
    """An abbreviation's value could be taken for the verb."""
    with pytest.raises(UsageError, match=r"there is no option --scratch$"):
        arguments.parse(["--scratch", "list", "vm1", "/mnt"])


def test_ctrl_c_while_the_command_loads_its_modules_ends_it_without_a_traceback() -> None:
    interrupting = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "snapmount.cli.arguments":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever has started us may have it ignored
sys.meta_path.insert(0, Finder())
from snapmount.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", interrupting], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
