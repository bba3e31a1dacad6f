"""Publishers show the images of a snapshot.  A publisher knows nothing of sources."""
