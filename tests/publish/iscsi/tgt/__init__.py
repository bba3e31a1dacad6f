"""The LUNs of tgtd, looked at by initiators; driven past the command, as the server drives it."""
