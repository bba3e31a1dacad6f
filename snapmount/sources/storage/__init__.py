"""The source `storage`: the VM is paused for a moment, in which its disks are cloned by what they are stored on."""
