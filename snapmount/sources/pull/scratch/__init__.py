"""Scratch space: where QEMU keeps what the guest overwrites, how much of it there is, and how much is used."""
