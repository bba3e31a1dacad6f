"""The mount: pyfuse3, with a native part for what that has not."""

from . import extension as extension  # first: it must be loaded before pyfuse3
