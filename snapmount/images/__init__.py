"""The disks of a snapshot, however they are read."""
