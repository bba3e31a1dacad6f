"""Programs that are missing, or cannot be run: the doctor sees them, and whoever calls them says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapmount.doctor import host
from snapmount.doctor.health import Status
from snapmount.doctor.subject import Subject
from snapmount.errors import MissingError
from snapmount.images import qcow2


@pytest.fixture
def qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program there is, which does not exist yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "qemu-img"


def make(program: Path, content: str, mode: int) -> None:
    program.write_text(content)
    program.chmod(mode)


async def make_file(directory: Path) -> None:
    await qcow2.create(str(directory / "vda.qcow2"), 1 << 20, None, what="the scratch file")


async def found() -> str:
    """What the doctor says is a problem with programs."""
    findings = await host.programs(Subject.here(None, None))
    return next(each.text for each in findings if each.status is Status.PROBLEM).partition(",")[0]


async def test_a_qemu_img_that_is_missing_breaks_every_snapshot(qemu_img: Path, tmp_path: Path) -> None:
    assert await found() == "qemu-img is missing"
    with pytest.raises(MissingError, match=r"^qemu-img is missing$"):
        await make_file(tmp_path)


async def test_a_qemu_img_that_may_not_be_executed_is_no_internal_error(qemu_img: Path, tmp_path: Path) -> None:
    make(qemu_img, "", 0o644)
    assert await found() == "qemu-img is missing"
    with pytest.raises(MissingError, match=r"^qemu-img cannot be run: Permission denied$"):
        await make_file(tmp_path)


async def test_a_qemu_img_that_does_not_start_is_seen(qemu_img: Path, tmp_path: Path) -> None:
    make(qemu_img, "no program", 0o755)
    assert await found() == "qemu-img cannot be run: Exec format error"
    with pytest.raises(MissingError, match=r"^qemu-img cannot be run: Exec format error$"):
        await make_file(tmp_path)
    make(qemu_img, "#!/bin/sh\necho no library >&2; exit 127", 0o755)
    assert await found() == "qemu-img cannot be run: no library"
