"""Sources make a snapshot and hand out its disks as images.  A source knows nothing of how they are shown.

To write another one, say `tape`, make a folder here, `sources/tape/`, with

- `state.py`: a frozen SourceState of what the record must keep for it, which core/document.py reads and writes, and
  KIND = "tape"; it imports nothing heavy, since `list` loads it;
- `description.py`: `describe(record, directory)`, a core.description.Description: what `list`, `show` and JSON tell of
  it; light too;
- `source.py`: the protocol Source (../source.py) as functions of that module: `why_not` says which VMs it cannot
  serve, `plan` only looks, and says what it would cost, `create` makes and returns the moment, `open` gives images,
  `watched` looks after it, `release` ends what costs the guest, `destroy` removes all;
  `why_lost`, `check_unused` and `by_hand` answer questions.

Then name it in kinds.py (state and description) and in registry.py (source): nothing else.  Mount, LUNs, scratch VMs,
attached disks, expiry, recovery, orphans and the man page's `delete` work with it, since all they have are images and
this protocol.  Three rules:

- what it makes is written down before it is made: `create` has the record, and where Plan names a directory the journal
  names it too, so that it is found after a reboot;
- `release`, `check_unused`, `destroy` and `by_hand` need a Kept alone, and may be called again, by another process;
- an image that can no longer be trusted raises OSError (EIO) for each read: never other bytes.
"""
