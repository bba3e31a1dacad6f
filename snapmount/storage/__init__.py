"""What takes snapshots of image files and block devices where they are stored: one driver for each kind of storage."""
