"""The source `offline`: the disks of a VM that is shut off, read where they lie."""
