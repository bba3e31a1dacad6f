"""Names from outside stay what they are shown as: they leave no directory, steer no terminal and split no command."""

from __future__ import annotations

import shlex
import string
import unicodedata
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import names

from ..strategies import PROPERTY

# A lone surrogate is what os.fsdecode() makes of a byte that is not UTF-8.
any_text = st.text(st.characters())


@pytest.mark.parametrize("name", ["vda", "sda1", "hdb", "VDA", "my_disk", "a" * 64])
def test_what_libvirt_allows_as_a_disk_name_is_one(name: str) -> None:
    assert names.is_disk_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../vda", "vda/", "a b", "vda\n", "vd\0a", "ä", "vd-a", "a" * 65])
def test_what_could_be_another_file_is_no_disk_name(name: str) -> None:
    assert not names.is_disk_name(name)


@PROPERTY
@given(any_text)
def test_a_disk_name_is_a_file_name_in_its_own_directory(name: str) -> None:
    if names.is_disk_name(name):
        assert PurePath("/mnt", name).parts == ("/", "mnt", name)
    else:
        assert set(name) - set(string.ascii_letters + string.digits + "_") or not 1 <= len(name) <= 64


def test_a_snapshot_id_has_eight_hexadecimal_digits() -> None:
    assert names.is_snapshot_id("3f2a91bc")
    for other in ("", "3f2a91b", "3f2a91bcd", "3F2A91BC", "3f2a91bg", "3f2a91bc\n", "../a91bc"):
        assert not names.is_snapshot_id(other), other


def test_a_mount_source_names_the_vm_and_the_snapshot() -> None:
    assert names.mount_source("vm1", "3f2a91bc") == "snapmount:vm1:3f2a91bc"
    assert names.mount_source("web-1.example+x_y", "3f2a91bc") == "snapmount:web-1.example+x_y:3f2a91bc"


@PROPERTY
@given(any_text)
def test_a_mount_source_holds_nothing_that_mount_options_or_mountinfo_would_escape(vm_name: str) -> None:
    source = names.mount_source(vm_name, "3f2a91bc")
    assert set(source) <= set(string.ascii_letters + string.digits + "._+-:")
    assert source.endswith(":3f2a91bc")
    assert source.count(":") == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("one\ntwo\ttab\rback", r"one\ntwo\ttab\rback"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202edef", r"abc\u202edef"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_would_steer_a_terminal_is_shown_escaped(text: str, shown: str) -> None:
    assert names.printable(text) == shown


@PROPERTY
@given(any_text)
def test_printable_text_has_no_control_characters_and_can_be_written(text: str) -> None:
    shown = names.printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert shown.encode().decode() == shown


@PROPERTY
@given(any_text)
def test_text_that_is_printable_is_left_as_it_is(text: str) -> None:
    once = names.printable(text)
    assert names.printable(once) == once
    if text.isprintable():
        assert once == text


@PROPERTY
@given(st.lists(any_text, min_size=1))
def test_a_shell_takes_the_words_of_a_command_for_what_they_are(words: list[str]) -> None:
    assert shlex.split(names.command(*words)) == words


def test_a_command_is_quoted_only_where_it_must_be() -> None:
    assert names.command("snapmount", "delete", "3f2a91bc") == "snapmount delete 3f2a91bc"
    assert names.command("mkdir", "-p", "/mnt/a b") == "mkdir -p '/mnt/a b'"
    assert names.command("echo", "$(reboot);`x`", "") == "echo '$(reboot);`x`' ''"


def test_near_names_come_best_first_and_three_at_most() -> None:
    known = ["web1", "web2", "web3", "web4", "database"]
    assert names.near("databse", known) == ["database"]
    found = names.near("web1x", known)
    assert found[0] == "web1"
    assert len(found) == 3
    assert names.near("mail", known) == []
    assert names.near("web1", []) == []


def test_a_near_name_may_differ_in_case_and_is_given_as_it_is_written() -> None:
    assert names.near("DATABASE", ["Database"]) == ["Database"]
    assert names.near("strasse", ["Straße"]) == ["Straße"]


@PROPERTY
@given(any_text, st.lists(any_text))
def test_a_known_name_is_near_to_itself_and_near_names_are_known(wanted: str, known: list[str]) -> None:
    assert set(names.near(wanted, known)) <= set(known)
    assert wanted in names.near(wanted, [wanted])


def test_words_are_listed_as_in_a_sentence() -> None:
    assert [names.listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
