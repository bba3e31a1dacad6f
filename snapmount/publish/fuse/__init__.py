"""The mount: pyfuse3, with a native part for what that has not."""
