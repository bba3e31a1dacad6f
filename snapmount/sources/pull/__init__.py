"""Snapshots that QEMU keeps: libvirt's pull-mode backup job (virDomainBackupBegin)."""
