"""Shards: `pytest --shards N` runs the tests as if on N hosts at once, each in namespaces of its own (enter-shard).

Most of the suite's time is spent in waiting.  But tests look for what a snapshot leaves on the whole host, so two of
them cannot run side by side on one.  pytest-xdist hands out the tests, module by module, and gathers the reports.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from . import libvirtd

TREE = Path(__file__).parents[2]
ENTER = Path(__file__).with_name("enter-shard")
PREFIX = "snapmount-test-shard-"
CHECK = "test_under_a_stock_kernel"  # the name of all tests that report a check of the stock kernel's VM

# The modules that take longest, longest first: begun late, one of them would keep one shard busy and the others idle.
LONGEST = (
    "tests/faults/test_soak.py",
    "tests/faults/test_scratch_space.py",
    "tests/faults/test_recover.py",
    "tests/faults/test_delete_ends.py",
    "tests/lifecycle/test_take.py",
    "tests/boot/test_boot.py",
    "tests/faults/test_lost_snapshots.py",
    "tests/hypervisor/test_quiesce.py",
    "tests/sources/storage/test_storage.py",
    "tests/faults/test_scratch_vms.py",
    "tests/faults/test_odd_ends.py",
    "tests/attach/test_attach.py",
    "tests/faults/test_upgrade.py",
    "tests/lifecycle/test_user_session.py",
    "tests/test_quickstart.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shards", type=int, default=1, metavar="N", help="run the tests as if on N hosts (needs root)")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Have pytest-xdist start the shards."""
    if is_shard(config):
        config.option.basetemp = None  # pytest-xdist's lies in the /tmp of the process that was started
        return
    if config.option.shards == 1 or lacking():
        return
    from . import scheduling  # pytest-xdist is needed for shards alone

    config.pluginmanager.register(scheduling)
    stack = contextlib.ExitStack()
    config.add_cleanup(stack.close)
    stack.enter_context(libvirtd.device_rights())  # before a shard does that, which would take them from the others
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir="/var/tmp")))
    config.option.dist = "loadscope"
    config.option.loadscopereorder = False
    config.option.tx = [_specification(directory / str(number)) for number in range(config.option.shards)]


def _specification(directory: Path) -> str:
    """How pytest-xdist starts a shard, whose files lie in the directory."""
    directory.mkdir()
    command = shlex.join(map(str, (ENTER, directory, TREE, sys.executable)))
    return f"popen//id=shard{directory.name}//python={command}"


def pytest_report_header(config: pytest.Config) -> str | None:
    why = config.option.shards > 1 and lacking()
    return f"no shards: {why}" if why else None


def lacking() -> str | None:
    """What this host lacks to be divided."""
    if os.geteuid() != 0:
        return "that needs root"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "true"], capture_output=True, text=True
    )
    return tried.stderr.strip() if tried.returncode else None


def is_shard(config: pytest.Config) -> bool:
    """Whether this process is one of those that run the tests, not the one that was started."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest comes first, if there are shards.

    Otherwise only the checks move, to the end: their VM runs beside all other tests then.
    """
    if not is_shard(config):
        items.sort(key=is_check)
        return
    order = {module: number for number, module in enumerate(LONGEST)}
    items.sort(key=lambda item: -1 if is_check(item) else order.get(item.nodeid.partition("::")[0], len(order)))


def is_check(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.originalname == CHECK
