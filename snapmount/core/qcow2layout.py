"""How a qcow2 file would lie on a disk that holds certain clusters of another one, whose data lies elsewhere.

Nothing of it is kept but the runs of clusters: any part of the tables is made when it is read.  The file is, in units
of its cluster size, always the same for the same clusters:

    | header | refcount table | L1 table | refcount blocks | L2 tables | data, in the disk's order |

Source: QEMU's docs/interop/qcow2.txt, whose sections are named below.
"""

from __future__ import annotations

import heapq
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .clusters import Clusters, Runs
from .extents import HOLE, ZERO, ExtentMap

CLUSTER_BYTES_MIN, CLUSTER_BYTES_MAX = 4 << 10, 2 << 20  # no larger ones are opened by QEMU
CLUSTER_BYTES = 64 << 10
LARGE_BYTES = 16 << 40  # beyond it the tables of smaller clusters, an 8192th of the data, have gigabytes
SECTOR_BYTES = 512  # in which QEMU counts: it drops what a size has beyond whole ones
BACKING_NAME_MAX = 1023  # bytes ("Header")
L1_TABLE_MAX, REFCOUNT_TABLE_MAX = 32 << 20, 8 << 20  # bytes; limits of QEMU ("Header", "Host cluster management")

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC, _VERSION = b"QFI\xfb", 3
_REFCOUNT_ORDER = 4  # 16 bits, as qemu-img makes them
_REFCOUNT_BYTES = 2
_ENTRY_BYTES = 8  # of the refcount table, L1 and L2
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_END_OF_EXTENSIONS = 0
_SOLE = 1 << 63  # "refcount is exactly one"
_READS_AS_ZEROS = 1


@dataclass(frozen=True)
class Backing:
    """The file in which a reader finds all that the image does not hold."""

    name: str  # as the image names it: a path, relative to the image's directory unless it is absolute, or a URI
    format: str  # of QEMU: raw, qcow2, ...


@dataclass(frozen=True)
class Metadata:
    """Bytes of the file that are of no disk."""

    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class OnDisk:
    """Bytes of the file that are the disk's.  What lies past its end is zero."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True)
class Placement:
    """Where the disk's clusters lie in the file: from `start` on, in their order, the one with rank 0 first."""

    start: int  # bytes
    cluster_bytes: int
    clusters: Runs


class Layout:
    """A qcow2 file, of which all but the data is known."""

    def __init__(self, clusters: Clusters, backing: Backing | None = None) -> None:
        """Raises ValueError for a backing file whose name is too long."""
        self.cluster_bytes = clusters.cluster_bytes
        self.virtual_bytes = -(-clusters.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
        self._data, self._zero = clusters.data, clusters.zero
        self._backing = backing
        if backing and len(_bytes(backing.name)) > BACKING_NAME_MAX:
            raise ValueError(f"the backing file's name has more than {BACKING_NAME_MAX} bytes: {backing.name}")
        self._l1_entries = -(-self._cluster_count // self._entries)
        self._tables = _used_tables(clusters, self._entries)
        self._place()

    def _place(self) -> None:
        """Find where each part begins, in clusters: the refcounts count themselves ("Host cluster management")."""
        l1 = -(-self._l1_entries * _ENTRY_BYTES // self.cluster_bytes)
        others = 1 + l1 + len(self._tables) + len(self._data)
        blocks = table = 0
        while True:
            total = others + blocks + table
            needed = -(-total * _REFCOUNT_BYTES // self.cluster_bytes)
            needed_table = -(-needed * _ENTRY_BYTES // self.cluster_bytes)
            if (needed, needed_table) == (blocks, table):
                break
            blocks, table = needed, needed_table
        self._refcount_table = 1
        self._refcount_table_clusters = table
        self._l1_table = 1 + table
        self._refcount_blocks = self._l1_table + l1
        self._refcount_block_count = blocks
        self._l2_tables = self._refcount_blocks + blocks
        self._data_start = self._l2_tables + len(self._tables)
        self._total = total

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self._total * self.cluster_bytes

    @property
    def metadata_bytes(self) -> int:
        """How much of it stands before the data."""
        return self._data_start * self.cluster_bytes

    @property
    def placement(self) -> Placement:
        return Placement(self.metadata_bytes, self.cluster_bytes, self._data)

    @property
    def is_within_limits(self) -> bool:
        """Whether QEMU opens an image with tables of this size."""
        refcount_table_bytes = self._refcount_table_clusters * self.cluster_bytes
        return self._l1_entries * _ENTRY_BYTES <= L1_TABLE_MAX and refcount_table_bytes <= REFCOUNT_TABLE_MAX

    def data_runs(self) -> Iterator[tuple[int, int, int]]:
        """The disk's data in the file: where it starts on the disk, where in the file, and its length."""
        unit, offset = self.cluster_bytes, self.metadata_bytes
        for first, count in self._data.runs():
            yield first * unit, offset, count * unit
            offset += count * unit

    @property
    def _entries(self) -> int:
        """Of an L2 table ("Cluster mapping")."""
        return self.cluster_bytes // _ENTRY_BYTES

    @property
    def _cluster_count(self) -> int:
        """Of the disk."""
        return -(-self.virtual_bytes // self.cluster_bytes)

    def parts(self, offset: int, length: int) -> Iterator[Metadata | OnDisk]:
        """What [offset, offset + length) of the file consists of; the range lies within the file."""
        end = offset + length
        if offset < self.metadata_bytes:
            stop = min(end, self.metadata_bytes)
            yield Metadata(self._metadata(offset, stop))
            offset = stop
        unit = self.cluster_bytes
        start, skipped = divmod(offset - self.metadata_bytes, unit)
        if offset < end:
            for first, count in self._data.of_ranks(start, -(-(end - self.metadata_bytes) // unit)):
                size = min(count * unit - skipped, end - offset)
                yield OnDisk(first * unit + skipped, size)
                offset, skipped = offset + size, 0

    # -- the metadata --------------------------------------------------------------------------------------------------

    def _metadata(self, start: int, end: int) -> bytes:
        """The bytes [start, end), all of which stand before the data."""
        parts = (
            (0, self._header),
            (self._refcount_table, self._refcount_table_bytes),
            (self._l1_table, self._l1_bytes),
            (self._refcount_blocks, self._refcount_bytes),
            (self._l2_tables, self._l2_bytes),
        )
        ends = [first for first, _ in parts[1:]] + [self._data_start]
        made = []
        for (first, make), stop in zip(parts, ends, strict=True):
            part_start, part_end = first * self.cluster_bytes, stop * self.cluster_bytes
            wanted_start, wanted_end = max(start, part_start), min(end, part_end)
            if wanted_start < wanted_end:
                made.append(make(wanted_start - part_start, wanted_end - part_start))
        return b"".join(made)

    def _header(self, start: int, end: int) -> bytes:
        """Of the first cluster ("Header", "Header extensions"); no feature bit is set."""
        extensions = b""
        name = b""
        if self._backing:
            extensions += _extension(_BACKING_FORMAT, _bytes(self._backing.format))
            name = _bytes(self._backing.name)
        extensions += _extension(_END_OF_EXTENSIONS, b"")
        name_offset = _HEADER.size + len(extensions) if name else 0
        header = _HEADER.pack(
            *(_MAGIC, _VERSION, name_offset, len(name)),
            *(self.cluster_bytes.bit_length() - 1, self.virtual_bytes, 0),
            *(self._l1_entries, self._l1_table * self.cluster_bytes),
            *(self._refcount_table * self.cluster_bytes, self._refcount_table_clusters),
            *(0, 0),  # snapshots
            *(0, 0, 0),  # features: incompatible, compatible, autoclear
            *(_REFCOUNT_ORDER, _HEADER.size),
        )
        return _padded((header + extensions + name)[start:end], end - start)

    def _refcount_table_bytes(self, start: int, end: int) -> bytes:
        """The refcount blocks follow each other ("Host cluster management")."""
        return self._offsets(start, end, self._refcount_blocks, self._refcount_block_count)

    def _refcount_bytes(self, start: int, end: int) -> bytes:
        """All clusters of the file are used once ("Host cluster management")."""
        used = max(0, min(end, self._total * _REFCOUNT_BYTES) - start)
        ones = b"\0\1" * (used // 2 + 1)
        return _padded(ones[start % 2 : start % 2 + used], end - start)

    def _l1_bytes(self, start: int, end: int) -> bytes:
        """An entry for each L2 table that there may be ("Cluster mapping")."""
        first, last = start // _ENTRY_BYTES, -(-end // _ENTRY_BYTES)
        entries = bytearray((last - first) * _ENTRY_BYTES)
        self._point(entries, first, self._tables.between(first, last), self._l2_tables)
        return bytes(entries[start - first * _ENTRY_BYTES :][: end - start])

    def _l2_bytes(self, start: int, end: int) -> bytes:
        """Those L2 tables that have an entry ("Cluster mapping", "Standard Cluster Descriptor")."""
        unit = self.cluster_bytes
        made = []
        for number, count in self._tables.of_ranks(start // unit, -(-end // unit)):
            for table in range(number, number + count):
                stop = min(end, (start // unit + 1) * unit)
                made.append(self._l2_table(table, start % unit, start % unit + stop - start))
                start = stop
        return b"".join(made)

    def _l2_table(self, table: int, start: int, end: int) -> bytes:
        """The bytes [start, end) of the table."""
        base = table * self._entries
        first, last = base + start // _ENTRY_BYTES, base - (-end // _ENTRY_BYTES)
        entries = bytearray((last - first) * _ENTRY_BYTES)
        self._point(entries, first, self._data.between(first, last), self._data_start)
        for zero, count, _ in self._zero.between(first, last):
            at = (zero - first) * _ENTRY_BYTES
            entries[at : at + count * _ENTRY_BYTES] = _packed([_READS_AS_ZEROS]) * count
        return bytes(entries[start % _ENTRY_BYTES :][: end - start])

    def _point(self, entries: bytearray, first: int, runs: Iterable[tuple[int, int, int]], base: int) -> None:
        """Let entries, the first of which has that number, point to the clusters from `base` on, by their ranks."""
        unit = self.cluster_bytes
        for number, count, rank in runs:
            at = (number - first) * _ENTRY_BYTES
            offset = _SOLE | (base + rank) * unit
            entries[at : at + count * _ENTRY_BYTES] = _packed(range(offset, offset + count * unit, unit))

    def _offsets(self, start: int, end: int, base: int, count: int) -> bytes:
        first, last = start // _ENTRY_BYTES, min(-(-end // _ENTRY_BYTES), count)
        unit = self.cluster_bytes
        entries = _packed(range((base + first) * unit, (base + last) * unit, unit))
        return _padded(entries[start % _ENTRY_BYTES :][: end - start], end - start)


def file_extents(layout: Layout, disk: ExtentMap) -> ExtentMap:
    """The extents of the file: data, but for what of the disk's clusters in it is known to be zero.

    Holes of the disk must begin and end at multiples of the smallest cluster size, or at the disk's end.
    """
    found = ExtentMap()
    found.append(layout.metadata_bytes, 0)
    starts, flags = disk.arrays()
    number = 0
    for first, file_offset, length in layout.data_runs():
        stop = first + length
        number = max(0, bisect_right(starts, first, lo=number) - 1)
        while number < len(starts) and starts[number] < stop:
            is_last = number + 1 == len(starts)
            start, end = max(first, starts[number]), stop if is_last else min(stop, starts[number + 1])
            if not flags[number] & ZERO:
                if is_last:  # what the last cluster has beyond the disk's end is a hole
                    end = min(stop, -(-disk.end // CLUSTER_BYTES_MIN) * CLUSTER_BYTES_MIN)
                found.append(file_offset + start - first - found.end, HOLE | ZERO)
                found.append(end - start, 0)
            number += 1
        number -= 1  # it may reach into the next run
    found.append(layout.size_bytes - found.end, HOLE | ZERO)
    return found


def smallest_cluster_bytes(size_bytes: int) -> int:
    """The smallest cluster size in which an image of that virtual size can be full, by QEMU's limits for tables."""
    cluster_bytes = CLUSTER_BYTES_MIN
    while cluster_bytes < CLUSTER_BYTES_MAX and not _can_be_full(size_bytes, cluster_bytes):
        cluster_bytes *= 2
    return cluster_bytes


def default_cluster_bytes(size_bytes: int) -> int:
    """The cluster size of an image for which none is asked for: qemu-img's, or the largest for a very large disk."""
    return CLUSTER_BYTES if size_bytes <= LARGE_BYTES else CLUSTER_BYTES_MAX


def _can_be_full(size_bytes: int, cluster_bytes: int) -> bool:
    clusters = Clusters(size_bytes, cluster_bytes)
    clusters.add_data(0, size_bytes)
    return Layout(clusters).is_within_limits


def _used_tables(clusters: Clusters, entries: int) -> Runs:
    """Which L2 tables have an entry, by their numbers."""
    tables = Runs()
    runs = clusters.data.runs()
    for first, length in heapq.merge(runs, clusters.zero.runs()) if len(clusters.zero) else runs:
        tables.add(first // entries, (first + length - 1) // entries + 1)
    return tables


def _extension(kind: int, data: bytes) -> bytes:
    return _padded(_EXTENSION.pack(kind, len(data)) + data, -(-(_EXTENSION.size + len(data)) // 8) * 8)


def _bytes(text: str) -> bytes:
    """As file names are bytes (PEP 383)."""
    return text.encode("utf-8", "surrogateescape")


def _packed(entries: Sequence[int]) -> bytes:
    return struct.pack(f">{len(entries)}Q", *entries)


def _padded(data: bytes, length: int) -> bytes:
    return data + bytes(length - len(data))
