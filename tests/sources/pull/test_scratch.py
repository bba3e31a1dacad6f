"""The scratch directory: how much it can hold and holds, made for QEMU alone and removed without a trace."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import threading
from pathlib import Path

import pytest
import trio

from snapmount.core.user import User
from snapmount.errors import SpaceError
from snapmount.host import datadirectory, usage
from snapmount.hypervisor import directories
from snapmount.sources.pull.scratch import files

MIB = 1 << 20
NOBODY = 65534


def me() -> User:
    return User(os.geteuid(), os.getegid(), tuple(os.getgroups()))


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an ordinary user's scratch directories go; it does not exist yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_default_is_on_a_disk_that_lasts(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root = os.geteuid() == 0
    assert datadirectory.path() == (datadirectory.SYSTEM if as_root else data_home / "snapmount")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert datadirectory.path() == (datadirectory.SYSTEM if as_root else Path("/home/me/.local/share/snapmount"))


def test_free_space_is_what_an_ordinary_user_may_still_write(tmp_path: Path) -> None:
    free = usage.free_bytes(tmp_path)
    assert 0 < free <= shutil.disk_usage(tmp_path).total


def test_the_default_parent_need_not_exist_yet(data_home: Path) -> None:
    existed = datadirectory.path().exists()
    assert usage.free_bytes(datadirectory.path()) > 0
    assert datadirectory.path().exists() == existed


def test_a_directory_that_does_not_exist_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    missing = tmp_path / "a b"
    with pytest.raises(SpaceError, match=f"the scratch directory {missing} does not exist") as caught:
        usage.free_bytes(missing)
    assert caught.value.remedy == f"mkdir '{missing}'"


def test_a_file_is_no_scratch_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SpaceError, match=f"the scratch directory {file} is not a directory") as caught:
        usage.free_bytes(file)
    assert caught.value.remedy is not None
    assert "--scratch-dir" in caught.value.remedy


def test_what_cannot_be_looked_at_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpaceError, match="cannot be used: Not a directory"):
        usage.free_bytes(tmp_path / "file" / "below")
    with pytest.raises(SpaceError, match="cannot be used: File name too long"):
        usage.free_bytes(tmp_path / ("x" * 300))


def test_used_space_is_what_the_files_allocate_not_their_length(tmp_path: Path) -> None:
    assert usage.used_bytes(tmp_path) == 0
    with (tmp_path / "vda.qcow2").open("wb") as sparse:
        sparse.truncate(64 * MIB)
        sparse.write(b"x" * MIB)
        sparse.flush()
        os.fsync(sparse.fileno())
    with (tmp_path / "vdb.qcow2").open("wb") as written:
        written.write(b"x" * MIB)
        written.flush()
        os.fsync(written.fileno())
    assert 2 * MIB <= usage.used_bytes(tmp_path) < 3 * MIB


def test_where_nothing_is_no_space_is_used(tmp_path: Path) -> None:
    assert usage.used_bytes(tmp_path / "gone") == 0
    (tmp_path / "file").write_text("x")
    assert usage.used_bytes(tmp_path / "file") == 0


async def test_a_new_directory_is_closed_to_others_and_empty(tmp_path: Path) -> None:
    directory = tmp_path / "snapmount-3f2a91bc"
    before = os.umask(0)
    try:
        await directories.create(directory, me(), os.getpid())
    finally:
        os.umask(before)
    status = directory.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert os.listdir(directory) == []


async def test_a_directory_that_exists_is_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="File exists"):
        await directories.create(tmp_path, me(), None)


def test_a_link_that_takes_the_place_of_a_new_directory_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever may write the directory above: root gives nothing away but what it has made."""
    target, directory, mkdir = tmp_path / "precious", tmp_path / "snapmount-3f2a91bc", Path.mkdir
    target.mkdir()

    def mkdir_and_be_replaced(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        path.rmdir()
        path.symlink_to(target)

    monkeypatch.setattr(Path, "mkdir", mkdir_and_be_replaced)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        directories._make(directory, User(NOBODY, NOBODY, ()))
    assert target.stat().st_uid == os.geteuid()


def test_space_is_not_reserved_for_what_a_link_in_a_scratch_file_s_place_leads_to() -> None:
    """QEMU's user may put it there."""
    if os.geteuid() != 0:
        pytest.skip("needs root: an ordinary user's QEMU runs as that user")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o711)
        precious, link = directory / "precious", directory / "vda.qcow2"
        precious.touch(0o600)
        link.symlink_to(precious)
        with pytest.raises(SpaceError, match=r"cannot be reserved .* Permission denied"):
            trio.run(files._reserve, str(link), MIB, User(NOBODY, NOBODY, ()))
        assert precious.stat().st_blocks == 0


async def test_a_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=f"{re.escape(str(tmp_path / 'none'))} is not writable: No such file"):
        await directories.create(tmp_path / "none" / "snapmount-3f2a91bc", me(), None)
    with pytest.raises(SpaceError, match="the scratch directory /proc is not writable"):
        await directories.create(Path("/proc/snapmount-3f2a91bc"), me(), None)


async def test_a_file_system_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(directories, "CHECK_S", 0.1)
    monkeypatch.setattr(directories, "_make", lambda *_: answered.wait())
    told = f"the scratch directory {re.escape(str(tmp_path))} did not answer within 0.1 s"
    with pytest.raises(SpaceError, match=told):
        await directories.create(tmp_path / "snapmount-3f2a91bc", me(), None)
    answered.set()


async def test_a_qemu_that_has_ended_is_not_held_against_the_directory(tmp_path: Path) -> None:
    beyond_all_pids = 1 << 30
    await directories.create(tmp_path / "snapmount-3f2a91bc", me(), beyond_all_pids)
    assert (tmp_path / "snapmount-3f2a91bc").is_dir()


def test_removing_takes_all_and_may_be_done_again(tmp_path: Path) -> None:
    directory = tmp_path / "snapmount-3f2a91bc"
    (directory / "below").mkdir(parents=True)
    (directory / "vda.qcow2").write_text("x")
    (directory / "below" / "file").write_text("x")
    directories.remove(directory)
    assert os.listdir(tmp_path) == [], "the parent stays: the user has chosen it"
    directories.remove(directory)


def test_what_is_in_the_way_is_an_error_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link") as caught:
        directories.remove(tmp_path / "link")
    assert caught.value.filename == str(tmp_path / "link")
    assert caught.value.strerror == "there is a symbolic link in its place"
    assert (target / "precious").exists()


def test_removing_goes_on_where_somebody_else_removes_the_files_too(tmp_path: Path) -> None:
    for number in range(100):
        directory = tmp_path / str(number)
        directory.mkdir()
        files = [directory / f"{n}.qcow2" for n in range(40)]
        for file in files:
            file.touch()
        libvirt = threading.Thread(target=lambda files=files: [file.unlink(missing_ok=True) for file in files])
        libvirt.start()
        directories.remove(directory)
        libvirt.join()
        assert not directory.exists()
