"""What the tests of the ready hooks share: each is run by the driver, as it will be, with fake programs on its PATH."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapmount.core.user import User
from snapmount.storage.driver import Clone, Offer, Task
from snapmount.storage.hook import HookDriver

HOOKS = Path(__file__).parents[3] / "contrib" / "hooks"
SNAPSHOT = "3f2a91bc"
READER = User(64055, 108, ())

FAKE = f"#!{sys.executable} -I\nimport json, os, re, sys\nhere = os.path.dirname(sys.argv[0])\n"
FAKE += "with open(sys.argv[0] + '.calls', 'a') as f: f.write(json.dumps(sys.argv[1:]) + '\\n')\n"


@dataclass
class Host:
    """Where hooks are installed, and the programs that they find."""

    directory: Path

    def install(self, name: str, edit: Callable[[str], str] = str) -> HookDriver:
        """A driver with that hook, a copy, which `edit` may change."""
        path = self.directory / name
        shutil.copyfile(HOOKS / name, path)
        path.write_text(edit(path.read_text()))
        path.chmod(0o755)
        return HookDriver(str(path))

    def add_program(self, name: str, script: str) -> None:
        """A fake program, in Python, which finds its arguments in sys.argv, and its directory in `here`."""
        path = self.directory / "bin" / name
        path.write_text(FAKE + script)
        path.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """With what arguments it was called since they were asked for last."""
        path = self.directory / "bin" / f"{name}.calls"
        if not path.exists():
            return []
        calls = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        return calls


async def offered(driver: HookDriver, origin: str) -> Offer:
    (offer,) = await driver.plan(Task(SNAPSHOT, [origin], READER))
    return offer


async def taken(driver: HookDriver, origin: str) -> tuple[Clone, str]:
    """A snapshot of it that has been taken and can be read, and its name."""
    clone = (await offered(driver, origin)).clone
    await driver.create(clone)
    return await driver.activate(clone), clone.kept["name"]
