"""Runs tests under the distribution's own kernel, in a VM on the host's root file system (virtme-ng).

The kernel that a test machine runs may lack what is tested, such as LIO.  The stock one is downloaded and unpacked into
.cache/ of the source tree, not installed: the host must not boot it.  In the VM the root file system is the host's,
and what is written to it stays in memory; only the directory for the results is shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import guest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "stock-kernel"
PACKAGES = ("linux-image-amd64", "linux-image-generic")  # Debian's name, Ubuntu's name
UNUSED = ("sound", "drivers/gpu", "drivers/media", "drivers/net", "drivers/infiniband", "drivers/iio")  # half of it
BIN = Path(sys.executable).parent
RESULTS = "results"  # lines of JSON, see within.py


@dataclass(frozen=True)
class Outcome:
    """How a test in the VM ended."""

    outcome: str  # "passed", "failed" or "skipped"
    text: str  # why


def lacking() -> str | None:
    """What this host lacks to run such a VM."""
    if os.geteuid() != 0:
        return "needs root: the VM shows the host's files as they are"
    for program in ("qemu-system-x86_64", "depmod", "apt-get"):
        if not shutil.which(program):
            return f"this host lacks {program}: run contrib/setup --test"
    if not (BIN / "vng").exists():
        return "this host lacks virtme-ng: run contrib/setup --test"
    return None


@functools.cache
def build() -> Path:
    """The kernel's image, its modules beside it as in the package; downloaded on first use.

    Raises CalledProcessError or RuntimeError where it cannot be had.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = guest.kernel_packages(PACKAGES)
        directory = CACHE / packages[0]
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                for package in packages:
                    guest.unpack(package, Path(scratch, "debs"), Path(scratch, "root"))
                _trim(Path(scratch, "root"))
                Path(scratch, "root").rename(directory)
    return next((directory / "boot").glob("vmlinuz-*"))


def _trim(root: Path) -> None:
    """Remove the modules that no test needs, and list the others for modprobe."""
    base = root if (root / "lib" / "modules").exists() else root / "usr"
    (version,) = (base / "lib" / "modules").iterdir()
    for unused in UNUSED:
        shutil.rmtree(version / "kernel" / unused, ignore_errors=True)
    subprocess.run(["depmod", "-b", base, version.name], check=True)


def run_tests(selection: list[str], deadline_s: float) -> tuple[dict[str, Outcome], str]:
    """Run pytest on the selection in a VM: the outcome of each test by its name, and what the VM has said.

    A test that the VM did not come to before the deadline has no outcome.
    """
    with _shared() as shared:
        plugins = ["-p", "no:cacheprovider", "-p", "tests.rig.within"]
        said = _boot([sys.executable, "-m", "pytest", *plugins, *selection], shared, deadline_s)
        return _outcomes(shared / RESULTS), said


def run(command: list[str], deadline_s: float) -> str:
    """What a command says in a VM."""
    with _shared() as shared:
        return _boot(command, shared, deadline_s)


@contextlib.contextmanager
def _shared() -> Iterator[Path]:
    """The one directory in which the VM's writes reach the host."""
    with tempfile.TemporaryDirectory(prefix="snapmount-tests-", dir="/var/tmp") as name:
        yield Path(name)


def _boot(command: list[str], shared: Path, deadline_s: float) -> str:
    """Boot a VM that runs the command, and return what they have said."""
    script = shared / "run"
    script.write_text(_script(command, shared))
    script.chmod(0o755)
    vng = [BIN / "vng", "--run", build(), "--user", "root", "--rwdir", shared, "--cwd", shared]
    vng += ["--overlay-rwdir=/etc", "--overlay-rwdir=/var", "--cpus", "2", "--memory", "2G"]
    vng += ["--disable-microvm", "--exec", script]
    if guest.domain_type() != "kvm":
        vng += ["--disable-kvm"]
    said = _run(list(map(str, vng)), deadline_s)
    with contextlib.suppress(FileNotFoundError):
        said += (shared / "output").read_text(errors="replace")
    return said


def _script(command: list[str], shared: Path) -> str:
    """What the VM runs.  It ends at once when that has ended, so all must be on its way to the host by then."""
    return f"""#!/bin/sh
exec >{shared}/output 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export SNAPMOUNT_RESULTS={shared}/{RESULTS} PYTHONDONTWRITEBYTECODE=1
cd {shlex.quote(str(ROOT))}
{shlex.join(command)}
dmesg | tail -n 50
"""


def _run(command: list[str], deadline_s: float) -> str:
    """Run the command; it and all that it has started are gone after the deadline, or if this process is killed."""
    contained = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}  # vng looks there for its own parts
    try:
        done = subprocess.run(
            [*contained, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=deadline_s,
        )
        return done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        return f"{(error.stdout or b'').decode(errors='replace')}\nthe VM was killed after {deadline_s:g} s\n"


def _outcomes(results: Path) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in results.read_text().splitlines():
            report = json.loads(line)
            if report["outcome"] != "passed" or report["name"] not in outcomes:
                outcomes[report["name"]] = Outcome(report["outcome"], report["text"])
    return outcomes
