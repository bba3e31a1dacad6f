"""snapmount: a running VM's disks, at one point in time, as read-only image files."""

__version__ = "0.1.0"
