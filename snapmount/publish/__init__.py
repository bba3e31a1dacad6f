"""Publishers show the images of a snapshot.  A publisher knows nothing of sources."""

from . import lseek as lseek  # first: its extension must be loaded before pyfuse3
