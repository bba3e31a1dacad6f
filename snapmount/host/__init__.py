"""This host: processes, mounts, locks, signals, logs.  Nothing here knows of snapshots or of libvirt."""
