"""The command `snapmount`, which is `python -m snapmount` too."""

import os
import sys
from typing import NoReturn

from .host import startup

startup.begin()

from .cli import commands  # noqa: E402  # only now: its modules take a while to load


def main() -> NoReturn:
    """Run the command, and end the process with its exit code."""
    code = 1
    try:
        code = commands.main()
    except SystemExit as ended:  # --help
        code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # a bug
    finally:
        os._exit(code)  # Python's own way would let signals kill it once more (signals.py)
    raise AssertionError


if __name__ == "__main__":
    main()
