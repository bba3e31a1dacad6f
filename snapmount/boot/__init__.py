"""Scratch VMs: a copy of the VM that runs on a snapshot, and whose writes are thrown away."""
