"""Where the ready hooks are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapmount.storage import hook, hookprogram
from snapmount.storage.hook import HookDriver

from .host import Host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "bin").mkdir()
    path = f"{tmp_path / 'bin'}:{hookprogram.ENVIRONMENT['PATH']}"
    monkeypatch.setitem(hookprogram.ENVIRONMENT, "PATH", path)
    patient = {verb: 10 * deadline_s for verb, deadline_s in hook.DEADLINES_S.items()}  # on a busy host
    monkeypatch.setattr(hook, "DEADLINES_S", patient)
    monkeypatch.setattr(HookDriver, "_status_of_late", HookDriver._status)  # what each asks is looked at
    return Host(tmp_path)
