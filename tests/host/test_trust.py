"""Which files can be believed, or run as root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapmount.host import trust
from snapmount.host.trust import Doubt


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    path = directory / "hook"
    path.touch()
    path.chmod(0o755)
    return path


def why(path: Path) -> str | None:
    doubt = trust.doubt(path)
    return doubt.why if doubt else None


def test_a_file_of_ours_that_nobody_else_can_write_is_trusted(file: Path) -> None:
    assert why(file) is None


def test_what_root_has_installed_is_trusted() -> None:
    assert why(Path("/bin/sh")) is None


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_file_that_others_can_write_is_not(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert trust.doubt(file) == Doubt(
        f"can be written by others than its owner (mode {mode:04o})",
        f"sudo chown root: {file} && sudo chmod go-w {file}",
    )


def test_a_file_whose_directory_others_can_write_is_not_unless_it_is_sticky(file: Path) -> None:
    file.parent.chmod(0o777)
    assert why(file) == f"lies in {file.parent}, which can be written by others than its owner (mode 0777)"
    file.parent.chmod(0o1777)
    assert why(file) is None


def test_what_a_link_leads_to_counts_with_its_directories(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert why(link) is None
    file.parent.chmod(0o777)
    assert why(link) == f"lies in {file.parent}, which can be written by others than its owner (mode 0777)"


def test_a_directory_is_no_such_file(file: Path) -> None:
    assert why(file.parent) == "is no regular file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not(file: Path) -> None:
    os.chown(file, 1000, 0)
    assert why(file) == "belongs to user 1000"
    os.chown(file, 0, 0)
    os.chown(file.parent, 1000, 0)
    assert why(file) == f"lies in {file.parent}, which belongs to user 1000"


def test_none_is_an_error_of_the_system(file: Path) -> None:
    file.unlink()
    with pytest.raises(FileNotFoundError):
        why(file)
