"""Publishers show the images of a snapshot.  A publisher knows nothing of sources."""

from .fuse import extension as extension  # first: it must be loaded before pyfuse3
