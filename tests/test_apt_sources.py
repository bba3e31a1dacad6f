"""The apt sources of a Debian host, for another release: contrib/test-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from .rig import apt_sources

STANZAS = """\
# the archive
Types: deb deb-src
URIs: http://mirror.invalid/debian http://other.invalid/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg
Trusted: yes

Types: deb
URIs: http://mirror.invalid/security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://others.invalid/of-a-release
Suites: bookworm
Components: stable

Types: deb
URIs: http://others.invalid/of-none
Suites: nodistro
Components: main

Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
Enabled: no
"""
LINES = """\
deb [arch=amd64 signed-by=/a.gpg,/b.gpg] http://mirror.invalid/debian stable main non-free # why
# deb http://off.invalid/debian bookworm main
deb-src http://mirror.invalid/debian bookworm main
deb http://mirror.invalid/security bookworm-security main
deb http://others.invalid/of-a-release bookworm stable
"""


def test_stanzas_name_the_other_release_and_keep_all_else() -> None:
    archive, security = apt_sources.rewritten(STANZAS, "sources", "bookworm", "trixie")
    assert archive.text == (
        "Types: deb deb-src\n"
        "URIs: http://mirror.invalid/debian http://other.invalid/debian\n"
        "Suites: trixie trixie-updates\n"
        "Components: main contrib\n"
        "Signed-By: /usr/share/keyrings/a.gpg\n"
        "Trusted: yes\n"
    )
    assert archive.uris == ("http://mirror.invalid/debian", "http://other.invalid/debian")
    assert archive.keyrings == (Path("/usr/share/keyrings/a.gpg"),)
    assert security.suites == ("trixie-security",)


def test_lines_name_the_other_release_and_keep_all_else() -> None:
    archive, security = apt_sources.rewritten(LINES, "list", "bookworm", "trixie")
    options = "[arch=amd64 signed-by=/a.gpg,/b.gpg]"
    assert archive.text == f"deb {options} http://mirror.invalid/debian trixie main non-free\n"
    assert archive.keyrings == (Path("/a.gpg"), Path("/b.gpg"))
    assert security.text == "deb http://mirror.invalid/security trixie-security main\n"


def test_the_mirror_is_that_of_the_release_itself() -> None:
    sources = apt_sources.rewritten(STANZAS, "sources", "bookworm", "trixie")
    assert apt_sources.mirror(sources[::-1], "trixie") == sources[0]
    with pytest.raises(RuntimeError, match="no mirror of Debian"):
        apt_sources.mirror(sources[1:], "trixie")
