"""contrib/test-in: the README's commands in a fresh root of a Debian release, which is removed at the end.

What a new user's host has is there: Debian's base system, git and this source tree, and from this host what reaches the
archives (apt's sources and settings, pip's, CA certificates, proxies).  Below .cache/test-in lie the base system, kept
for a month, and what apt and pip have downloaded; and the root itself, for as long as it is needed.  Only the standard
library is used: the tree's own virtualenv need not exist.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import apt_sources

TREE = Path(__file__).parents[2]
CACHE = TREE / ".cache" / "test-in"
ENTER = Path(__file__).with_name("enter-root")
IN_ROOT = "opt/snapmount"  # where the tree lies in there; not below a directory that is closed to users
PACKAGES = "ca-certificates,git,sudo"  # what the README asks for
BASE_S = 30 * 86400
INTERRUPTED_S = 60
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf", "~/.netrc")


def main(arguments: list[str]) -> int:
    """Make the root, run the commands in it, remove it; the exit code is that of the first command that failed."""
    suite, *rest = arguments
    command = rest[1:] if rest[:1] == ["--"] else ["both", *rest]
    place = CACHE / suite
    for directory in ("archives/partial", "pip"):
        (place / directory).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with _alone(place), _fresh(place, suite) as root:
            say(f"running in a fresh root of {_name(root)}")
            return _run(root, place, command)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"test-in: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("test-in: interrupted; the root has been removed", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another contrib/test-in {place.name} runs") from None
        yield


@contextlib.contextmanager
def _fresh(place: Path, suite: str) -> Iterator[Path]:
    """A copy of the base system with the tree in it; removed after the block, and where a killed run has left one."""
    sources = _sources(suite)
    base = _base(place, suite, sources)
    root = place / "root"
    _remove(root)
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        _carry(root, sources)
        _copy_tree(root / IN_ROOT)
        yield root
    finally:
        _remove(root)


def _sources(suite: str) -> list[apt_sources.Source]:
    """This host's sources, for the suite.  Raises RuntimeError."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        raise RuntimeError("this host is no Debian, so that its apt sources name no mirror of Debian")
    etc = Path("/etc/apt")
    found: list[apt_sources.Source] = []
    for file in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
        extension = file.suffix.lstrip(".")
        if file.is_file() and extension in ("list", "sources"):
            found += apt_sources.rewritten(file.read_text(), extension, release["VERSION_CODENAME"], suite)
    return found


def _base(place: Path, suite: str, sources: list[apt_sources.Source]) -> Path:
    """The base system, made by debootstrap where there is none of late."""
    base, new = place / "base", place / "base.new"
    if base.exists() and time.time() - base.stat().st_mtime < BASE_S:
        return base
    source = apt_sources.mirror(sources, suite)
    keyrings = [key for key in source.keyrings if key.suffix != ".asc"]  # debootstrap takes no others
    command: list[str | Path] = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}"]
    command += [f"--keyring={keyrings[0]}" if keyrings else "--force-check-gpg", suite, new, _uri(source)]
    log = place / "debootstrap.log"
    say(f"making a base system of {suite}, to be kept in .cache/test-in")
    for old in (new, base):
        shutil.rmtree(old, ignore_errors=True)
    with log.open("wb") as output:
        if subprocess.run(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL).returncode:
            raise RuntimeError(f"debootstrap has failed; its last words (all of them: {log}):\n{_end(log)}")
    for deb in (new / "var/cache/apt/archives").glob("*.deb"):
        deb.rename(place / "archives" / deb.name)
    new.rename(base)
    os.utime(base)
    return base


def _uri(source: apt_sources.Source) -> str:
    """Where debootstrap finds the archive: it does not know apt's lists of mirrors (apt-transport-mirror(1))."""
    listed = source.uris[0].removeprefix("mirror+file:")
    return Path(listed).read_text().split()[0] if listed != source.uris[0] else listed


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def _carry(root: Path, sources: list[apt_sources.Source]) -> None:
    """What this host needs to reach the archives, whatever that is."""
    apt = root / "etc/apt"
    (apt / "sources.list").unlink(missing_ok=True)
    for number, source in enumerate(sources):
        (apt / "sources.list.d" / f"host-{number}.{source.extension}").write_text(source.text)
        for keyring in source.keyrings:
            _copy(keyring, root)
    for directory in ("auth.conf.d", "keyrings", "mirrors", "trusted.gpg.d"):
        _copy(Path("/etc/apt", directory), root)
    _copy(Path("/etc/apt/auth.conf"), root)
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout.splitlines()
    acquire = [line for line in settings if re.match(r"Acquire::(?!IndexTargets)", line)]
    (apt / "apt.conf.d/00host").write_text("\n".join(acquire) + "\n")
    for name in ("/etc/ssl/certs", "/usr/local/share/ca-certificates", "/etc/resolv.conf", "/etc/hosts"):
        _copy(Path(name), root)
    for file in _pip_files():
        _copy(file, root, Path("/root") / file.relative_to(Path.home()) if file.is_relative_to(Path.home()) else file)
    for path in (*_named_by_pip(), *(Path(os.environ[name]) for name in CERTIFICATES if name in os.environ)):
        if path.is_file() or path.is_relative_to("/etc"):
            _copy(path, root)


def _copy(path: Path, root: Path, inside: Path | None = None) -> None:
    """Copy what this host has at the path, links followed, beside what the root has there."""
    if not path.exists():
        return
    target = root / (inside or path).relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        target.unlink(missing_ok=True)
    what = f"{path}/." if path.is_dir() else path
    subprocess.run(["cp", "-rL", "--preserve=mode", "--remove-destination", what, target], check=True)


def _copy_tree(target: Path) -> None:
    """A clone of this tree, with what has been changed in it and added since its last commit."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", TREE, target], check=True)
    changed = _git("diff", "--name-only", "--no-renames", "-z", "HEAD") + _git(
        "ls-files", "-z", "-o", "--exclude-standard"
    )
    for name in changed:
        here, there = TREE / name, target / name
        there.unlink(missing_ok=True)
        if os.path.lexists(here):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here, there, follow_symlinks=False)


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=TREE, stdout=subprocess.PIPE, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


def _run(root: Path, place: Path, command: list[str]) -> int:
    """Run the command in the root; all that it has started is gone afterwards."""
    shared = [str(place / "archives"), "/var/cache/apt/archives", str(place / "pip"), "/root/.cache/pip"]
    for path in _named_by_pip():
        if path.is_dir() and not path.is_relative_to("/etc"):
            shared += [str(path), str(path)]
    words: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--uts"]
    words += ["--fork", "--kill-child", ENTER, root, f"/{IN_ROOT}", str(len(shared)), *shared, *command]
    with subprocess.Popen(words, env=_environment(root)) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the commands too, which tidy up
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(INTERRUPTED_S)
            raise
        finally:
            # the namespace's first process is gone only when all others are, and unshare(1) when it is
            subprocess.run(["pkill", "-KILL", "-P", str(process.pid)])


def _pip_files() -> list[Path]:
    """The files that pip's configuration consists of."""
    names = [*PIP_FILES, os.environ.get("PIP_CONFIG_FILE", "")]
    return [path for path in (Path(name).expanduser() for name in names if name) if path.is_file()]


def _named_by_pip() -> list[Path]:
    """The files and directories of this host that pip's configuration names: constraints, certificates, packages."""
    texts = [value for name, value in os.environ.items() if name.startswith("PIP_")]
    texts += [file.read_text() for file in _pip_files()]
    named = {Path(path) for text in texts for path in re.findall(r"(?<![\w:/.])(?:file://)?(/[^\s,'\"]+)", text)}
    named = {path.parent if path.name == "simple" else path for path in named}  # an index links to files beside it
    return sorted(path for path in named if path.exists() and len(path.parts) > 2)


def _environment(root: Path) -> dict[str, str]:
    """What a login has, and how the archives are reached."""
    kept = {*PROXIES, *(name.upper() for name in PROXIES), *CERTIFICATES, "TERM", "SNAPMOUNT_TEST_NO_SKIP"}
    environment = {name: value for name, value in os.environ.items() if name in kept or name.startswith("PIP_")}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return environment | {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "debian_chroot": _name(root)}


def _name(root: Path) -> str:
    named = re.search(r'^PRETTY_NAME="?(.*?)"?$', (root / "etc/os-release").read_text(), re.MULTILINE)
    return named[1] if named else root.parent.name


def _remove(root: Path) -> None:
    """Remove the root; loop devices that a killed test has left on files in it are detached first."""
    if not root.exists():
        return
    listed = subprocess.run(
        ["losetup", "-n", "--raw", "-O", "NAME,BACK-MAJ:MIN,BACK-INO"], capture_output=True, text=True
    )
    device_of_root = f"{os.major(root.stat().st_dev)}:{os.minor(root.stat().st_dev)}"
    for name, device, inode in re.findall(r"^(\S+) +(\S+) +(\d+)$", listed.stdout, re.MULTILINE):
        held: list[str | Path] = ["find", root, "-xdev", "-type", "f", "-inum", inode, "-print", "-quit"]
        if device == device_of_root and subprocess.run(held, capture_output=True, check=True).stdout:
            subprocess.run(["losetup", "-d", name])
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


def say(text: str) -> None:
    print(f"test-in: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
