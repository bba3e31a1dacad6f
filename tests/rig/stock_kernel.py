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
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import guest, libvirtd

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "stock-kernel"
PACKAGES = ("linux-image-amd64", "linux-image-generic")  # Debian's name, Ubuntu's name
UNUSED = ("sound", "drivers/gpu", "drivers/media", "drivers/net", "drivers/infiniband", "drivers/iio")  # half of it
BIN = Path(sys.executable).parent
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
RESULTS = "results"  # lines of JSON, see within.py
OUTPUT = "output"  # of the command
VM_OUTPUT = "vm-output"

# A second view of the host's root, whose files the VM keeps in memory, as nobody changes them: programs start twice as
# fast from it as from what virtme-ng mounts, cache=none (https://docs.kernel.org/filesystems/9p.html).
CACHED = "cached"
CACHED_AT = f"/run/{CACHED}"
CACHED_DIRECTORIES = ("/usr/bin", "/usr/sbin", sysconfig.get_path("stdlib"), "/usr/lib/python3", str(ROOT))
DEVICE = f"-fsdev local,id={CACHED},path=/,security_model=none,readonly=on,multidevs=remap"
DEVICE += f" -device virtio-9p-pci,fsdev={CACHED},mount_tag={CACHED}"


@dataclass(frozen=True)
class Outcome:
    """How a test in the VM ended."""

    outcome: str  # "passed", "failed" or "skipped"
    text: str  # why


def lacking() -> str | None:
    """What this host lacks to run such a VM, whose kernel is downloaded on first use."""
    if os.geteuid() != 0:
        return "needs root: the VM shows the host's files as they are"
    for program in ("qemu-system-x86_64", "depmod", "apt-get"):
        if not shutil.which(program):
            return f"this host lacks {program}: run contrib/setup --test"
    if not (BIN / "vng").exists():
        return "this host lacks virtme-ng: run contrib/setup --test"
    try:
        build()
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return f"there is no stock kernel: {error}"
    return None


@functools.cache
def build() -> Path:
    """The kernel's image, its modules beside it as in the package; downloaded on first use.

    Raises CalledProcessError or RuntimeError if it cannot be had.
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


@dataclass
class Machine:
    """A VM that runs a command."""

    process: subprocess.Popen[bytes]
    shared: Path  # the one directory in which its writes reach the host
    deadline: float  # of time.monotonic()

    def wait(self) -> str:
        """What the command and the VM have said, when it has ended; it is killed at the deadline."""
        try:
            self.process.wait(max(0, self.deadline - time.monotonic()))
            last = ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            last = "\nthe VM was killed at its deadline\n"
        said = [
            path.read_text(errors="replace")
            for path in (self.shared / VM_OUTPUT, self.shared / OUTPUT)
            if path.exists()
        ]
        return "".join(said) + last

    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of each test by its name; one that the VM did not come to has none."""
        found: dict[str, Outcome] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.shared / RESULTS).read_text().splitlines():
                report = json.loads(line)
                name, outcome = report["name"], Outcome(report["outcome"], report["text"])
                if name in found and found[name].outcome == "failed":  # and so may its teardown be
                    outcome = Outcome("failed", f"{found[name].text}\n{outcome.text}")
                if outcome.outcome != "passed" or name not in found:
                    found[name] = outcome
        return found


def testing(selection: list[str], deadline_s: float) -> contextlib.AbstractContextManager[Machine]:
    """A VM that runs pytest on the selection, while the block does something else."""
    _compile(selection)
    return running([*PYTEST, "-p", "tests.rig.within", *selection], deadline_s)


def _compile(selection: list[str]) -> None:
    """Compile here what the VM imports, also the tests as pytest does: there it takes ten times as long."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    compiler = [sys.executable, "-m", "compileall", "-q", "snapmount"]
    for command in (compiler, [*PYTEST, "--collect-only", *selection]):
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)


def run(command: list[str], deadline_s: float) -> str:
    """What a command says in a VM."""
    with running(command, deadline_s) as machine:
        return machine.wait()


@contextlib.contextmanager
def running(command: list[str], deadline_s: float) -> Iterator[Machine]:
    """A VM that runs the command; it and all that it has started are gone after the block, or if this process is
    killed.
    """
    with tempfile.TemporaryDirectory(prefix="snapmount-tests-", dir="/var/tmp") as name:
        shared = Path(name)
        contained = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        contained += libvirtd.AS_BATCH
        with (
            (shared / VM_OUTPUT).open("wb") as said,
            subprocess.Popen(
                [*contained, *_vng(command, shared)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},  # vng looks there for its own parts
            ) as process,
        ):
            try:
                yield Machine(process, shared, time.monotonic() + deadline_s)
            finally:
                process.kill()


def _vng(command: list[str], shared: Path) -> list[str]:
    """The command line that boots such a VM."""
    script = shared / "run"
    script.write_text(_script(command, shared))
    script.chmod(0o755)
    vng = [BIN / "vng", "--run", build(), "--user", "root", "--rwdir", shared, "--cwd", shared]
    vng += ["--overlay-rwdir=/etc", "--overlay-rwdir=/var", "--cpus", "1", "--memory", "2G"]
    vng += ["--disable-microvm", "--append=cryptomgr.notests", f"--qemu-opts={DEVICE}", "--exec", script]
    if guest.domain_type() != "kvm":
        vng += ["--disable-kvm"]
    return list(map(str, vng))


def _script(command: list[str], shared: Path) -> str:
    """What the VM runs.  It ends at once when that has ended, so all must be on its way to the host by then."""
    return f"""#!/bin/sh
exec >{shared}/{OUTPUT} 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export SNAPMOUNT_RESULTS={shared}/{RESULTS} PYTHONDONTWRITEBYTECODE=1
mkdir {CACHED_AT}
mount -t 9p -o ro,version=9p2000.L,trans=virtio,msize=524288,cache=loose {CACHED} {CACHED_AT}
for directory in {shlex.join(CACHED_DIRECTORIES)}; do mount --bind "{CACHED_AT}$directory" "$directory"; done
cd {shlex.quote(str(ROOT))}
{shlex.join(command)}
dmesg | tail -n 50
"""
