"""What a Python module that is missing means to the user."""

from __future__ import annotations

import sys

from ..core import names
from ..errors import MissingError


def explained(error: ModuleNotFoundError) -> MissingError:
    """The error to tell.  Raises the same one if it is a module of ours, which is a bug."""
    name = (error.name or "").partition(".")[0]
    if name == "snapmount":
        raise error
    return MissingError(
        f"the Python module {name} is missing", names.command(sys.executable, "-m", "pip", "install", name)
    )
