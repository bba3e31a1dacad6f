"""Sources make a snapshot and hand out its disks as images.  A source knows nothing of publishers."""
