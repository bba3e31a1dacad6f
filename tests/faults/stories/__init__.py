"""What can go wrong with a snapshot: each fault as a short story, in a module of its subject.

A story takes the snapshot (that may be the very thing that fails), breaks something, says what readers must see then,
and ends the snapshot.  It leaves the proof of what was read, and that nothing is left, to the soak.
"""

from __future__ import annotations

from . import calm, hypervisor, readers, server, space

FAULTS = (*calm.FAULTS, *server.FAULTS, *readers.FAULTS, *space.FAULTS, *hypervisor.FAULTS)
