"""Where every record of a checkpoint lies in its file. Pure arithmetic, no bytes.

A checkpoint is a zip archive of stored (uncompressed) records, one behind the other::

    local header + padding | bytes of record 0 | local header + padding | bytes of record 1 | ...
    ... | central directory | [zip64 end of directory] | end of directory | seal

Everything is known once the sizes are: the padding in each local header puts the record's bytes
on a boundary of :data:`PAGE` bytes (large records, so that they can be read straight into
page-aligned memory) or of :data:`LINE` bytes (small ones, as ``torch.save`` does).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["LARGE", "LINE", "PAGE", "UINT16", "UINT32", "Layout", "Record", "data_offset", "plan"]

PAGE = 4096
"""Alignment of large records, bytes: a page, and a block of every common disk."""
LINE = 64
"""Alignment of small records, bytes: a cache line, ``torch.save``'s own alignment."""
LARGE = 64 << 10
"""Records of at least so many bytes lie on a page boundary: at most 6 % is padding."""

UINT16 = 0xFFFF
UINT32 = 0xFFFFFFFF

LOCAL_HEADER = 30
DIRECTORY_ENTRY = 46
END = 22
ZIP64_END = 56 + 20
LOCAL_ZIP64 = 20
IMAGE_SIZE_FIELD = 12
PADDING_FIELD = 4
SEAL = len(b"asyncsave 1 image=00000000 index=00000000")


class Record(NamedTuple):
    """One named run of bytes in the file. All figures are bytes from the file's start."""

    name: str
    header_offset: int
    offset: int
    nbytes: int


class Layout(NamedTuple):
    """The whole file: its records in order, then its directory, then its end."""

    records: list[Record]
    directory_offset: int
    directory_nbytes: int
    nbytes: int

    @property
    def zip64(self) -> bool:
        """Whether the archive's end needs 64-bit figures."""
        return needs_zip64(len(self.records), self.directory_offset, self.directory_nbytes)


def needs_zip64(count: int, directory_offset: int, directory_nbytes: int) -> bool:
    """Tell whether an archive's end must be written with 64-bit figures."""
    return count >= UINT16 or max(directory_offset, directory_nbytes) >= UINT32


def data_offset(header_offset: int, name_nbytes: int, nbytes: int, *, first: bool) -> int:
    """Return where a record's bytes begin, given where its local header does."""
    header = LOCAL_HEADER + name_nbytes + PADDING_FIELD
    if nbytes >= UINT32:
        header += LOCAL_ZIP64
    if first:
        header += IMAGE_SIZE_FIELD
    alignment = PAGE if nbytes >= LARGE else LINE
    return (header_offset + header + alignment - 1) & -alignment


def directory_zip64(nbytes: int, header_offset: int) -> int:
    """Return the size of a directory entry's zip64 field, 0 if it needs none."""
    figures = 2 * (nbytes >= UINT32) + (header_offset >= UINT32)
    return 4 + 8 * figures if figures else 0


def plan(sizes: Iterable[tuple[str, int]]) -> Layout:
    """Lay out records of the given (ASCII) names and sizes in bytes, in the given order."""
    records = []
    position = directory_nbytes = 0
    for name, nbytes in sizes:
        offset = data_offset(position, len(name), nbytes, first=position == 0)
        records.append(Record(name, position, offset, nbytes))
        directory_nbytes += DIRECTORY_ENTRY + len(name) + directory_zip64(nbytes, position)
        position = offset + nbytes
    end = END + SEAL
    if needs_zip64(len(records), position, directory_nbytes):
        end += ZIP64_END
    return Layout(records, position, directory_nbytes, position + directory_nbytes + end)
