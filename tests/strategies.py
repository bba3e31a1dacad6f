"""What property-based tests draw from: values as users, libvirt and the kernel may hand them in."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from snapmount.core.document import to_document
from snapmount.core.domainxml import UNCONFINABLE
from snapmount.core.leftout import LeftOut
from snapmount.core.lifecycle import State
from snapmount.core.snapshot import Disk, DiskUrl, Nvram, Snapshot
from snapmount.host.processes import Process
from snapmount.records.record import Record
from snapmount.sources.pull.state import PullState

# The same examples in each run, and none too slow: a busy host is not a failure.
PROPERTY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

# What XML 1.0 can hold ("Char" in its section 2.2)
xml_text = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["Cc"], include_characters="\t\n\r\x85", exclude_characters="\ufffe\uffff"
    )
)
confinable_text = xml_text.filter(lambda text: not UNCONFINABLE.intersection(text))  # what AppArmor's profiles can name
# What records may hold: the operating system and XML know no zero character
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
# What os.fsdecode() makes of the bytes of a file name (PEP 383)
file_names = text | st.binary().map(lambda name: name.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
disk_names = st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True)

# created is what a clock may say; strftime(3) does not pad a year before 1000
snapshots = st.builds(
    Snapshot,
    id=st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    vm_name=text,
    vm_uuid=st.uuids().map(str),
    created=st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1), timezones=st.just(UTC)),
    source=st.sampled_from(["pull", "offline"]),
    quiesced=st.booleans(),
    since=st.none() | text,
    disks=st.lists(
        st.builds(
            Disk,
            name=disk_names,
            size_bytes=st.integers(min_value=0, max_value=1 << 63),
            format=st.sampled_from(["raw", "qcow2"]),
            origin=file_names,
            allocated_bytes=st.none() | st.integers(min_value=0, max_value=1 << 63),
            logical_block_size_bytes=st.sampled_from([512, 4096]),
            qcow2_cluster_size_bytes=st.sampled_from([4096, 65536, 1 << 21]),
        )
    ).map(tuple),
    left_out=st.lists(st.builds(LeftOut, name=text, why=text)).map(tuple),
    urls=st.lists(st.builds(DiskUrl, name=text, url=text)).map(tuple),
    nvram=st.none()
    | st.builds(
        Nvram,
        size_bytes=st.integers(min_value=0, max_value=1 << 63),
        format=st.sampled_from(["raw", "qcow2"]),
        origin=file_names,
    ),
)
processes = st.builds(Process, pid=st.integers(min_value=1), start_ticks=st.integers(min_value=0), boot_id=text)
records = st.builds(
    Record,
    snapshot=snapshots,
    connect=text,
    mountpoint=file_names,
    mount_source=text,
    source=st.builds(PullState, socket=file_names, scratch=file_names).map(to_document),
    server=processes,
    state=st.sampled_from(State),
    reason=st.none() | text,
    frozen=st.booleans(),
    is_hidden=st.booleans(),
    is_for_boot=st.booleans(),
    is_open=st.booleans(),
    expires_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=8,
)
