"""Disks of a snapshot, plugged into other VMs."""
