"""QEMU's word that another process has locked an image is understood, in each form that it has had."""

from __future__ import annotations

import pytest

from snapmount.core import qemulock

COMMAND = "internal error: unable to execute QEMU command 'transaction': "


@pytest.mark.parametrize(
    "said",
    [
        'Failed to get "write" lock\nIs another process using the image [/images/a b.img]?',
        'Failed to get shared "write" lock\nIs another process using the image [/images/a b.img]?',
        'Failed to get "consistent read" lock\nIs another process using the image [/images/a b.img]?',
        "Failed to lock byte 101\nIs another process using the image [/images/a b.img]?",
    ],
)
def test_the_image_is_named_that_another_process_has_locked(said: str) -> None:
    assert qemulock.refused(COMMAND + said) == "/images/a b.img"


def test_libvirt_is_not_told_which_image_it_is() -> None:
    assert qemulock.refused(f'{COMMAND}Could not replace node: Failed to get shared "write" lock') == ""


@pytest.mark.parametrize("said", ["", "Failed to start", "Could not open '/x': No such file or directory"])
def test_other_errors_are_of_no_lock(said: str) -> None:
    assert qemulock.refused(COMMAND + said) is None
