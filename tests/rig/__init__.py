"""What the tests and contrib/quickstart stand on: a libvirt daemon, a tiny guest, VMs, and the proof of a view.

Nothing here is part of the installed package, and nothing here imports it: the rig looks at snapmount from outside.
"""
