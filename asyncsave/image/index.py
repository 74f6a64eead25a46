"""Read a zip's directory back: where each record lies, and what its CRC-32 should be.

Works on files of asyncsave and of ``torch.save``. Nothing is unpickled, nothing is decompressed, and
no figure of the file is believed before it has been held against the file's size.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from asyncsave.errors import INSTEAD, CorruptCheckpointError, FormatVersionError, LoadError
from asyncsave.image.crc import crc32
from asyncsave.image.layout import PAGE, UINT16, UINT32, data_offset
from asyncsave.image.torchzip import VERSION

__all__ = ["Entry", "Index", "Readable", "checkpoint_index", "is_zip", "promised_nbytes", "read_index", "refuse_torn"]

_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_SEAL = re.compile(rb"asyncsave (\d{1,6}) image=([0-9a-f]{8}) index=([0-9a-f]{8})")
_MAX_COMMENT = UINT16
_LARGEST_DIRECTORY = 256 << 20
"""Bytes; a longer directory, of three million records or more, is not believed: it would be read into memory."""


class Readable(Protocol):
    """What the index is read from: a file of known size."""

    path: str
    nbytes: int

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; the range lies inside the file."""


class Entry(NamedTuple):
    """One record: its name without the archive's prefix, where its bytes lie, and their CRC-32."""

    name: str
    header_offset: int
    offset: int
    nbytes: int
    crc: int


class Index(NamedTuple):
    """The directory of a checkpoint.

    Attributes:
        entries: The records, in the file's order.
        image_crc: CRC-32 of all bytes before the seal, or None for a file without a seal.
        sealed_nbytes: How many bytes ``image_crc`` covers.
        checksums: False for a file that was written without CRCs (a setting of ``torch.save``).
    """

    entries: list[Entry]
    image_crc: int | None
    sealed_nbytes: int
    checksums: bool


def is_zip(head: bytes) -> bool:
    """Tell whether a file that begins with these bytes is (or was once) a zip archive."""
    return head[:4] == b"PK\x03\x04"


def refuse_torn(file: Readable, head: bytes) -> None:
    """Refuse what is no zip any more: it has lost its beginning, or all of it.

    Args:
        file: A file that does not begin as a zip does.
        head: Its first bytes.

    Raises:
        CorruptCheckpointError: It was one once, or is empty.
    """
    end = file.read(max(0, file.nbytes - 4096), min(file.nbytes, 4096))
    if b"PK\x05\x06" in end:
        message = f"{file.path!r} is damaged: its first bytes are overwritten, found {head[:4]!r}"
        raise CorruptCheckpointError(message, path=file.path, expected=repr(b"PK\x03\x04"), found=repr(head[:4]))
    if not file.nbytes:
        message = f"{file.path!r} is an empty file"
        raise CorruptCheckpointError(message, path=file.path, expected="a checkpoint", found="0 bytes")


class _End(NamedTuple):
    """Where the archive's end begins, and what it says."""

    offset: int
    comment: bytes
    entries: int
    directory_offset: int
    directory_nbytes: int


def read_index(file: Readable) -> Index:
    """Read and check the directory of a checkpoint.

    Raises:
        CorruptCheckpointError: The file is truncated or its directory is damaged.
        FormatVersionError: The file has a newer seal than this version knows.
        LoadError: A zip, but not one of stored records (compressed, encrypted or split), or with an absurd directory.
    """
    end = _find_end(file)
    if end.directory_nbytes > _LARGEST_DIRECTORY:
        message = (
            f"{file.path!r} says that its zip directory has {end.directory_nbytes:,} bytes, this asyncsave reads "
            f"{_LARGEST_DIRECTORY:,}: it is no checkpoint, or one to be loaded with torch.load"
        )
        raise LoadError(message, path=file.path)
    directory = file.read(end.directory_offset, end.directory_nbytes)
    seal = _SEAL.fullmatch(end.comment)
    sealed_nbytes = file.nbytes - len(end.comment)
    if seal is not None:
        if int(seal[1]) != VERSION:
            message = (
                f"{file.path!r} has format version {int(seal[1])}, this asyncsave reads {VERSION}: "
                "update asyncsave, or load the file with torch.load"
            )
            raise FormatVersionError(message, path=file.path)
        tail = directory + file.read(end.offset, sealed_nbytes - end.offset)
        if (found := crc32(tail)) != (expected := int(seal[3], 16)):
            raise _damaged(file, "the directory's CRC-32", f"{expected:08x}", f"{found:08x}", record=None)
    elif promised_nbytes(file) is not None:
        raise _damaged(file, "the seal", "asyncsave's", repr(end.comment))
    entries = _locate(file, list(_parse(file, directory, end.entries)), sealed=seal is not None)
    _check_extents(file, entries, end.directory_offset)
    if seal is None:
        _check_names(file, entries)
    checksums = seal is not None or any(entry.crc for entry in entries if entry.nbytes)
    return Index(entries, int(seal[2], 16) if seal else None, sealed_nbytes, checksums)


def checkpoint_index(file: Readable) -> Index:
    """Read the directory of a zip archive that is a checkpoint.

    Raises:
        CorruptCheckpointError: It is truncated or damaged.
        LoadError: It is another archive.
    """
    index = read_index(file)
    names = {entry.name for entry in index.entries}
    if "constants.pkl" in names:
        message = f"{file.path!r} is a TorchScript archive: load it with torch.jit.load"
        raise LoadError(message, path=file.path)
    if "data.pkl" not in names:
        message = f"{file.path!r} is a zip archive, but not a checkpoint: it has no data.pkl"
        raise LoadError(message, path=file.path)
    return index


def _damaged(
    file: Readable, what: str, expected: str, found: str, *, record: str | None = None
) -> CorruptCheckpointError:
    return CorruptCheckpointError.of(file.path, expected, found, record=record, what=what)


def promised_nbytes(file: Readable) -> int | None:
    """Return how long the file was made, which the first header of asyncsave's files says."""
    head = file.read(0, min(file.nbytes, PAGE))
    if len(head) < _LOCAL.size:
        return None
    name_nbytes, extra_nbytes = _LOCAL.unpack_from(head)[9:]
    extra = head[_LOCAL.size + name_nbytes :][:extra_nbytes]
    mark = extra.find(b"AS\x08\x00")
    return struct.unpack_from("<Q", extra, mark + 4)[0] if 0 <= mark <= len(extra) - 12 else None


def _truncated(file: Readable) -> CorruptCheckpointError:
    """Describe a file whose end is missing."""
    promised = promised_nbytes(file)
    expected = "a zip directory at the end of the file" if promised is None else f"{promised} bytes"
    found = f"{file.nbytes} bytes"
    if expected == found:
        expected, found = "a zip directory at the end of the file", "other bytes"
    message = f"{file.path!r} is truncated or overwritten: expected {expected}, found {found}. {INSTEAD}"
    return CorruptCheckpointError(message, path=file.path, expected=expected, found=found)


def _find_end(file: Readable) -> _End:
    """Find the end-of-directory record: the last one whose comment reaches the file's end."""
    window = min(file.nbytes, _END.size + _MAX_COMMENT)
    tail = file.read(file.nbytes - window, window)
    at = len(tail)
    while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
        if at + _END.size <= len(tail):
            _, disk, _, count, total, nbytes, offset, comment = _END.unpack_from(tail, at)
            if at + _END.size + comment == len(tail):
                if disk not in (0, UINT16) or count != total:
                    message = f"{file.path!r} is one part of a split zip archive, not a checkpoint"
                    raise LoadError(message, path=file.path)
                end = _End(file.nbytes - window + at, tail[at + _END.size :], count, offset, nbytes)
                return _widened(file, end)
    raise _truncated(file)


def _widened(file: Readable, end: _End) -> _End:
    """Take the 64-bit figures where there are any, and hold the directory's place against them."""
    at = end.offset - _ZIP64_LOCATOR.size
    if at >= 0:
        magic, _, zip64, _ = _ZIP64_LOCATOR.unpack(file.read(at, _ZIP64_LOCATOR.size))
        if magic == b"PK\x06\x07":
            if zip64 + _ZIP64_END.size > file.nbytes:
                raise _damaged(file, "the zip64 end of directory", "inside the file", f"at {zip64}")
            fields = _ZIP64_END.unpack(file.read(zip64, _ZIP64_END.size))
            if fields[0] != b"PK\x06\x06":
                raise _damaged(file, "the zip64 end of directory", "its signature", repr(fields[0]))
            end = _End(zip64, end.comment, fields[7], fields[9], fields[8])
    found = end.directory_offset + end.directory_nbytes
    if found != end.offset:
        raise _damaged(file, "the directory", f"ends at byte {end.offset}", f"ends at byte {found}")
    return end


def _parse(file: Readable, directory: bytes, count: int) -> Iterator[Entry]:
    """Yield the directory's entries, their data offsets not known yet (-1)."""
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise _damaged(file, "the directory", f"{count} entries", "fewer")
        (magic, _, _, flags, method, _, _, crc, stored, nbytes, name_nbytes, extra_nbytes,
         comment_nbytes, _, _, _, offset) = _ENTRY.unpack_from(directory, at)  # fmt: skip
        at += _ENTRY.size
        name = directory[at : at + name_nbytes].decode("utf-8", "backslashreplace")
        if magic != b"PK\x01\x02":
            raise _damaged(file, "a directory entry", "its signature", repr(magic))
        extra = directory[at + name_nbytes : at + name_nbytes + extra_nbytes]
        at += name_nbytes + extra_nbytes + comment_nbytes
        if UINT32 in (nbytes, stored, offset):
            nbytes, stored, offset = _wide(file, name, extra, (nbytes, stored, offset))
        if method or flags & 1 or stored != nbytes:
            message = (
                f"{file.path!r}: record {name!r} is compressed or encrypted; checkpoints hold stored "
                "records only. A TorchScript archive loads with torch.jit.load; for any other see what made it"
            )
            raise LoadError(message, path=file.path)
        yield Entry(name, offset, -1, nbytes, crc)
    if at != len(directory):
        raise _damaged(file, "the directory's size", f"{at} bytes", f"{len(directory)} bytes")


def _wide(file: Readable, name: str, extra: bytes, figures: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replace figures that do not fit 32 bits by those in the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + nbytes]
            wanted = sum(figure == UINT32 for figure in figures)
            if len(field) < 8 * wanted:
                break
            values = iter(struct.unpack_from(f"<{wanted}Q", field))
            first, second, third = (next(values) if f == UINT32 else f for f in figures)
            return first, second, third
        at += 4 + nbytes
    raise _damaged(file, "its zip64 field", "64-bit sizes", "none", record=name)


def _locate(file: Readable, entries: list[Entry], *, sealed: bool) -> list[Entry]:
    """Find where each record's bytes begin, in the file's order, and strip the archive's prefix."""
    entries.sort(key=lambda entry: entry.header_offset)
    located = []
    for number, entry in enumerate(entries):
        if sealed:
            offset = data_offset(entry.header_offset, len(entry.name), entry.nbytes, first=number == 0)
        else:
            if entry.header_offset + _LOCAL.size > file.nbytes:
                at = f"at byte {entry.header_offset}"
                raise _damaged(file, "its header", "inside the file", at, record=entry.name)
            header = _LOCAL.unpack(file.read(entry.header_offset, _LOCAL.size))
            if header[0] != b"PK\x03\x04":
                raise _damaged(file, "its header", "a signature", repr(header[0]), record=entry.name)
            offset = entry.header_offset + _LOCAL.size + header[9] + header[10]
        located.append(entry._replace(name=_short(entry.name), offset=offset))
    return located


def _check_extents(file: Readable, entries: list[Entry], limit: int) -> None:
    """Refuse records that overlap, lie outside the file, or share a name."""
    position = 0
    for entry in entries:
        end = entry.offset + entry.nbytes
        if entry.header_offset < position or end > limit:
            expected, found = f"bytes {position} to {limit}", f"{entry.header_offset} to {end}"
            raise _damaged(file, "its extent", expected, found, record=entry.name)
        position = end
    if len({entry.name for entry in entries}) != len(entries):
        raise _damaged(file, "the records' names", "different ones", "duplicates")


def _check_names(file: Readable, entries: list[Entry]) -> None:
    """Hold the directory's names against those in the records' own headers."""
    for entry in entries:
        header = file.read(entry.header_offset, entry.offset - entry.header_offset)
        name = header[_LOCAL.size :][: _LOCAL.unpack_from(header)[9]]
        if _short(name.decode("utf-8", "backslashreplace")) != entry.name:
            raise _damaged(file, "its name", repr(entry.name), repr(name), record=entry.name)


def _short(name: str) -> str:
    """Strip the archive's own folder from a record's name."""
    return name.partition("/")[2] or name
