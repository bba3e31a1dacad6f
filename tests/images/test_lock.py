"""QEMU's lock of an image, held by us: no QEMU opens it for writing meanwhile, others read it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.errors import NotFoundError, StateError
from snapmount.images import lock

from ..rig.libvirtd import wait_for

WRITE = "write -P 1 0 512"
READ = "read 0 512"


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file and its format."""
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, path, "1M"], check=True)
    return path, request.param


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    descriptor = lock.held(str(path))
    try:
        yield
    finally:
        os.close(descriptor)


def qemu_io(image: tuple[Path, str], command: str, *options: str) -> str:
    """What QEMU says against it; '' where it does as it is told."""
    path, form = image
    done = subprocess.run(["qemu-io", *options, "-f", form, "-c", command, path], capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@contextlib.contextmanager
def qemu_nbd(image: tuple[Path, str], *options: str) -> Iterator[None]:
    """A QEMU that has the image open, for writing unless the options forbid it."""
    path, form = image
    socket = path.with_name("s")
    ask = ["qemu-img", "info", f"nbd+unix:///?socket={socket}"]
    with subprocess.Popen(["qemu-nbd", "-t", "-k", socket, "-f", form, *options, path]) as server:
        try:
            wait_for(lambda: subprocess.run(ask, capture_output=True).returncode == 0, "QEMU has opened the image")
            yield
        finally:
            server.terminate()


def test_no_qemu_writes_to_an_image_that_is_held_and_others_read_it(image: tuple[Path, str]) -> None:
    with held(image[0]):
        assert 'Failed to get "write" lock' in qemu_io(image, WRITE)
        assert qemu_io(image, READ, "-r") == ""
        with held(image[0]):
            pass
    assert qemu_io(image, WRITE) == ""


def test_an_image_that_a_qemu_writes_to_cannot_be_held(image: tuple[Path, str]) -> None:
    with qemu_nbd(image), pytest.raises(StateError, match=f"{image[0]} is open for writing in another process"):
        lock.held(str(image[0]))
    assert qemu_io(image, WRITE) == "", "what was refused holds no lock"


def test_an_image_that_a_qemu_reads_can_be_held(image: tuple[Path, str]) -> None:
    with qemu_nbd(image, "-r"), held(image[0]):
        assert 'Failed to get "write" lock' in qemu_io(image, WRITE)


def test_a_lock_that_is_released_is_gone_though_a_duplicate_of_its_descriptor_is_not(image: tuple[Path, str]) -> None:
    descriptor = lock.held(str(image[0]))
    duplicate = os.dup(descriptor)
    lock.release(descriptor)
    os.close(descriptor)
    assert qemu_io(image, WRITE) == ""
    os.close(duplicate)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(StateError, match="neither a file nor a block device"):
            lock.held(str(path))
    with pytest.raises(NotFoundError, match="does not exist"):
        lock.held(str(tmp_path / "none"))


def test_a_file_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").touch()

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.fcntl", refuse)
    os.close(lock.held(str(tmp_path / "image")))
