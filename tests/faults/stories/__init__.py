"""What can go wrong with a snapshot: each fault as a short story, in a module of its subject.

A story takes the snapshot (that may be the very thing that fails), breaks something, says what readers must see then,
and ends the snapshot.  It leaves the proof of what was read, and that nothing is left, to the soak.
"""

from __future__ import annotations

from . import calm, helpers, host, hypervisor, readers, scratch_vms, server, space

SUBJECTS = (calm, server, readers, space, hypervisor, scratch_vms, helpers, host)
FAULTS = tuple(fault for subject in SUBJECTS for fault in subject.FAULTS)
