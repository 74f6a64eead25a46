"""Read a checkpoint's records in parallel, and hold every byte against its checksum on arrival.

Two ways through the same blocks: :class:`Records` puts each record where it is to stay, all at once
or as they are asked for; :func:`scan` keeps nothing and looks at the bytes between the records too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from asyncsave.errors import INSTEAD, CorruptCheckpointError, LoadError
from asyncsave.image.crc import combine, crc32
from asyncsave.image.index import Entry, Index
from asyncsave.image.layout import PAGE
from asyncsave.memory import Pages
from asyncsave.storage.source import Source
from asyncsave.workers import Workers

__all__ = ["BLOCK", "Records", "Scan", "scan"]

BLOCK = 8 << 20
"""Bytes that are read at once."""
_SLAB = 1 << 20
"""Records of fewer bytes share a mapping with their neighbours; larger ones have their own, so that
dropping one tensor frees its memory."""


class _Slab:
    """A page-aligned run of the file in memory, and the records in it."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.start = entries[0].offset & -PAGE
        stop = (entries[-1].offset + entries[-1].nbytes + PAGE - 1) & -PAGE
        self.nbytes = stop - self.start
        self.pages = Pages(self.nbytes)
        self.memory = self.pages.view

    def view(self, entry: Entry) -> memoryview:
        """Return the bytes of one record."""
        at = entry.offset - self.start
        return self.memory[at : at + entry.nbytes]

    def blocks(self) -> Iterator[tuple[_Slab, int]]:
        """Return the slab's blocks, by their offset in it."""
        return ((self, at) for at in range(0, self.nbytes, BLOCK))


def _slabs(entries: Iterable[Entry]) -> Iterator[_Slab]:
    """Group records, in the file's order, into runs that are read at once."""
    run: list[Entry] = []
    for entry in entries:
        large = entry.nbytes >= _SLAB
        if run and (large or entry.offset + entry.nbytes - run[0].offset > _SLAB):
            yield _Slab(run)
            run = []
        run.append(entry)
        if large:
            yield _Slab(run)
            run = []
    if run:
        yield _Slab(run)


class Records:
    """Records of a checkpoint, each with a place in fresh memory, which is taken up only when it is read.

    Args:
        source: The checkpoint.
        entries: Which records, in the file's order.
        workers: Who reads.
        check: Whether to compare every record with its CRC-32, block by block as they arrive.

    Attributes:
        views: The bytes of each record that has any, by name: writable, each large one in a mapping of its
            own. Zeros, until it is read.

    Raises:
        LoadError: There is not enough memory.
    """

    def __init__(self, source: Source, entries: Iterable[Entry], workers: Workers, *, check: bool) -> None:
        self._source = source
        self._workers = workers
        self._check = check
        try:
            slabs = list(_slabs(entry for entry in entries if entry.nbytes))
        except (OSError, MemoryError) as error:
            message = f"not enough memory to load {source.path!r} ({source.nbytes:,} bytes): {error}"
            raise LoadError(message, path=source.path) from error
        self.views = {entry.name: slab.view(entry) for slab in slabs for entry in slab.entries}
        self._unread = {entry.name: slab for slab in slabs for entry in slab.entries}

    def read(self, names: Iterable[str] | None = None) -> None:
        """Read records that have not been read yet; None: all. What shares memory with them is read too.

        Raises:
            CorruptCheckpointError: A record differs from its checksum.
        """
        names = list(self._unread) if names is None else names
        slabs = list({id(slab): slab for name in names if (slab := self._unread.get(name))}.values())
        parts: dict[tuple[int, int], int] = {}

        def read(block: tuple[_Slab, int]) -> None:
            slab, at = block
            piece = slab.memory[at : at + BLOCK]
            slab.pages.touch(at, len(piece))
            self._source.fill(piece, slab.start + at)
            if not self._check:
                return
            if len(slab.entries) == 1:
                entry = slab.entries[0]
                first = max(at, entry.offset - slab.start)
                last = min(at + len(piece), entry.offset - slab.start + entry.nbytes)
                parts[entry.offset, at] = crc32(slab.memory[first:last])
            else:
                for entry in slab.entries:
                    _compare(self._source, entry, crc32(slab.view(entry)))

        self._workers.each(read, [block for slab in slabs for block in slab.blocks()])
        for slab in slabs:
            if self._check and len(slab.entries) == 1:
                _compare(self._source, slab.entries[0], _combined(slab, parts))
            for entry in slab.entries:
                del self._unread[entry.name]


def _combined(slab: _Slab, parts: dict[tuple[int, int], int]) -> int:
    entry = slab.entries[0]
    begin = entry.offset - slab.start
    crc = 0
    for _, at in slab.blocks():
        length = min(at + BLOCK, begin + entry.nbytes) - max(at, begin)
        crc = combine(crc, parts[entry.offset, at], max(0, length))
    return crc


def _compare(source: Source, entry: Entry, found: int) -> None:
    if found != entry.crc:
        message = (
            f"{source.path!r} is damaged: record {entry.name!r} ({entry.nbytes:,} bytes at "
            f"{entry.offset:,}) has CRC-32 {found:08x}, expected {entry.crc:08x}. {INSTEAD}"
        )
        raise CorruptCheckpointError(
            message,
            path=source.path,
            record=entry.name,
            expected=f"{entry.crc:08x}",
            found=f"{found:08x}",
        )


class _Part(NamedTuple):
    """The checksum of a run of bytes that lies in one block and in one segment."""

    segment: int
    start: int
    nbytes: int
    crc: int


class Scan(NamedTuple):
    """The CRC-32s found in a file: of every record by name, of all before the seal, of all bytes."""

    records: dict[str, int]
    image: int
    whole: int


def scan(source: Source, index: Index, workers: Workers, told: Callable[[int], object] | None = None) -> Scan:
    """Read every byte of a file once; keep none. ``told`` hears of every block, on the thread that has read it."""
    bounds = _segments(index, source.nbytes)
    buffers = threading.local()
    found: list[_Part] = []

    def look(start: int) -> None:
        if not hasattr(buffers, "block"):
            pages = Pages(BLOCK)
            pages.touch(0, BLOCK)
            buffers.block = pages.view
        stop = min(start + BLOCK, source.nbytes)
        source.fill(buffers.block[: (stop - start + PAGE - 1) & -PAGE], start)
        parts = []
        for number in _touching(bounds, start, stop):
            first, last = max(start, bounds[number][0]), min(stop, bounds[number][1])
            crc = crc32(buffers.block[first - start : last - start])
            parts.append(_Part(number, first, last - first, crc))
        found.extend(parts)
        if told is not None:
            told(stop - start)

    workers.each(look, range(0, source.nbytes, BLOCK))
    crcs = [0] * len(bounds)
    image = whole = 0
    for part in sorted(found, key=lambda part: (part.start, part.segment)):
        crcs[part.segment] = combine(crcs[part.segment], part.crc, part.nbytes)
        whole = combine(whole, part.crc, part.nbytes)
        if part.start < index.sealed_nbytes:
            image = whole
    records = dict.fromkeys((entry.name for entry in index.entries), 0)
    for crc, (_, _, entry) in zip(crcs, bounds, strict=True):
        if entry is not None:
            records[entry.name] = crc
    return Scan(records, image, whole)


def _segments(index: Index, nbytes: int) -> list[tuple[int, int, Entry | None]]:
    """Split the file into records and what lies between them; nothing is left out."""
    bounds: list[tuple[int, int, Entry | None]] = []
    position = 0
    for entry in index.entries:
        if entry.nbytes:
            if entry.offset > position:
                bounds.append((position, entry.offset, None))
            position = entry.offset + entry.nbytes
            bounds.append((entry.offset, position, entry))
    bounds.append((position, index.sealed_nbytes, None))
    if index.sealed_nbytes < nbytes:
        bounds.append((index.sealed_nbytes, nbytes, None))
    return bounds


def _touching(bounds: Sequence[tuple[int, int, Entry | None]], start: int, stop: int) -> Iterator[int]:
    """Return the numbers of the segments that share bytes with ``start`` to ``stop``."""
    low, high = 0, len(bounds)
    while low < high:
        middle = (low + high) // 2
        if bounds[middle][1] <= start:
            low = middle + 1
        else:
            high = middle
    while low < len(bounds) and bounds[low][0] < stop:
        yield low
        low += 1
