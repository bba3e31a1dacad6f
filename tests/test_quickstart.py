"""What contrib/quickstart says where it fails: what has failed, in a line, and where more is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .rig import quickstart


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("virsh start vm: no KVM"), "virsh start vm: no KVM"),
        (TimeoutError("waited 60 s until libvirt answers"), "waited 60 s until libvirt answers"),
        (subprocess.CalledProcessError(100, ["apt-get", "download", "x"]), "apt-get download x has failed"),
        (RuntimeError("cannot limit core file size to unlimited: Operation not permitted"), "try: max_core = 0"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_failure_is_a_few_lines_and_names_the_log(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fails() -> bool:
        raise error

    monkeypatch.setattr(quickstart, "prove", fails)
    monkeypatch.setattr(quickstart, "LOG", tmp_path / "new" / "quickstart.log")
    assert quickstart.main() == 1
    shown = capsys.readouterr()
    assert shown.out == "", "nothing is proposed next"
    assert said in shown.err
    assert str(quickstart.LOG) in shown.err
    assert len(shown.err.splitlines()) <= 3
    assert "Traceback" in quickstart.LOG.read_text()
