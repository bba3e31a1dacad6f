"""The firmware's variables are copied as they are at one moment; what cannot be copied is left out, and said so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapmount.core.leftout import LeftOut
from snapmount.core.snapshot import Nvram
from snapmount.errors import StateError
from snapmount.lifecycle import nvram
from snapmount.records.store import Lease, Store

from ..rig.records import ID, a_record

WHERE = "<nvram format='{form}'>{path}</nvram>"


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    """A snapshot that is being taken."""
    lease = Store(tmp_path / "runtime").lease(a_record())
    yield lease
    lease.release()


def domain(nvram: str) -> str:
    return f"<domain><os>{nvram}</os></domain>"


def kept_at(path: Path | str, form: str = "raw") -> str:
    return domain(WHERE.format(path=path, form=form))


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_they_are_kept_byte_for_byte_whatever_their_format(lease: Lease, tmp_path: Path, form: str) -> None:
    path = tmp_path / "vars"
    path.write_bytes(bytes(range(256)) * 2112)
    await nvram.keep(kept_at(path, form), lease)
    assert lease.record.snapshot.nvram == Nvram(540672, form, str(path))
    assert lease.record.snapshot.left_out == ()
    path.write_bytes(b"the guest goes on")
    assert await nvram.kept(lease) == bytes(range(256)) * 2112
    assert lease.store.load(ID) == lease.record, "so finds them who takes the snapshot over"


async def test_without_such_a_firmware_there_is_nothing_to_keep_or_to_tell(lease: Lease) -> None:
    await nvram.keep(domain("<loader/>"), lease)
    assert lease.record == a_record()
    assert await nvram.kept(lease) is None


def huge(path: Path) -> None:
    with path.open("wb") as f:
        f.truncate(nvram.MOST_BYTES + 1)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: it is no regular file"),
        (os.mkfifo, "cannot be read: it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is no regular file"),
        (huge, "cannot be read: it has more than 80 MiB"),
    ],
    ids=["nothing", "directory", "fifo", "device", "huge"],
)
async def test_what_is_no_file_of_variables_is_left_out(
    lease: Lease, tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "vars"
    make(path)
    await nvram.keep(kept_at(path), lease)
    assert lease.record.snapshot.left_out == (LeftOut("nvram", f"{path} {why}"),)
    assert lease.record.snapshot.nvram is None
    assert not (lease.directory / "nvram").exists()


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("<nvram type='block'><source dev='/dev/vg/vars'/></nvram>", "not in a file, but of type block"),
        ("<nvram type='network'><source protocol='iscsi' name='v'/></nvram>", "not in a file, but of type network"),
        ("<nvram/>", "libvirt does not tell where they are"),
        ("<nvram>vars.fd</nvram>", "libvirt does not tell where they are"),
    ],
)
async def test_what_is_not_in_a_file_is_left_out(lease: Lease, where: str, why: str) -> None:
    await nvram.keep(domain(where), lease)
    assert lease.record.snapshot.left_out == (LeftOut("nvram", why),)


def test_a_copy_is_of_one_moment_though_the_guest_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter([b"torn", b"before", b"after", b"after", b"later"])
    monkeypatch.setattr(nvram, "_read", lambda path: next(reads))
    assert nvram._settled("/vars") == b"after"


def test_what_changes_all_the_time_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(1000))
    monkeypatch.setattr(nvram, "_read", lambda path: b"%d" % next(numbers))
    with pytest.raises(OSError, match="it changes all the time"):
        nvram._settled("/vars")


async def test_a_copy_that_has_gone_is_an_error_that_names_it(lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "vars").touch()
    await nvram.keep(kept_at(tmp_path / "vars"), lease)
    (lease.directory / "nvram").unlink()
    with pytest.raises(StateError, match=f"the firmware's variables {lease.directory}/nvram cannot be read"):
        await nvram.kept(lease)
