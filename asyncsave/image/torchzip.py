"""Seal a file image: the headers, the directory and the seal of a zip that ``torch.load`` reads.

The format is PKWARE's APPNOTE 6.3.9, as far as ``torch.save`` uses it. Two additions, both in places
that zip readers skip, let a damaged file say what is wrong with it:

- the first local header carries the size of the whole file in an extra field ``AS``, so that a
  truncated file is known as such, with both sizes;
- the archive's comment is the *seal*: ``asyncsave 1 image=XXXXXXXX index=XXXXXXXX``. ``image`` is the
  CRC-32 of every byte before the seal, headers and padding included; ``index`` is that of the bytes
  from the directory up to the seal, so that a reader that skips headers can trust the directory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from asyncsave.image.crc import combine, crc32
from asyncsave.image.layout import (
    LOCAL_HEADER,
    PADDING_FIELD,
    SEAL,
    UINT16,
    UINT32,
    Layout,
    Record,
)

__all__ = ["DIGEST_PREFIX", "VERSION", "local_header", "seal"]

VERSION = 1
DIGEST_PREFIX = "crc32:"

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_FIELD = struct.Struct("<2sH")

_PLAIN, _WITH_ZIP64 = 20, 45
_DATE_1980 = 0x21


def local_header(record: Record, crc: int, *, image_nbytes: int | None) -> bytes:
    """Return the bytes from a record's header offset up to its data, padding included.

    Args:
        record: Where the record lies.
        crc: CRC-32 of its bytes.
        image_nbytes: Size of the whole file, for the first record; None for all others.
    """
    name = record.name.encode("ascii")
    size, needs, extra = record.nbytes, _PLAIN, b""
    if size >= UINT32:
        extra = _FIELD.pack(b"\x01\x00", 16) + struct.pack("<2Q", size, size)
        size, needs = UINT32, _WITH_ZIP64
    if image_nbytes is not None:
        extra += _FIELD.pack(b"AS", 8) + struct.pack("<Q", image_nbytes)
    room = record.offset - record.header_offset - LOCAL_HEADER - len(name) - len(extra)
    padding = room - PADDING_FIELD
    return b"".join(
        (
            _LOCAL.pack(b"PK\x03\x04", needs, 0, 0, 0, _DATE_1980, crc, size, size, len(name), len(extra) + room),
            name,
            extra,
            _FIELD.pack(b"FB", padding),
            bytes(padding),
        )
    )


def _directory_entry(record: Record, crc: int) -> bytes:
    name = record.name.encode("ascii")
    size, offset, needs, figures = record.nbytes, record.header_offset, _PLAIN, b""
    if size >= UINT32:
        figures += struct.pack("<2Q", size, size)
        size = UINT32
    if offset >= UINT32:
        figures += struct.pack("<Q", offset)
        offset = UINT32
    if figures:
        figures = _FIELD.pack(b"\x01\x00", len(figures)) + figures
        needs = _WITH_ZIP64
    fixed = _ENTRY.pack(
        b"PK\x01\x02", needs, needs, 0, 0, 0, _DATE_1980, crc, size, size,
        len(name), len(figures), 0, 0, 0, 0, offset,
    )  # fmt: skip
    return fixed + name + figures


def _end(layout: Layout) -> bytes:
    count, nbytes, offset = len(layout.records), layout.directory_nbytes, layout.directory_offset
    end = b""
    if layout.zip64:
        end = _ZIP64_END.pack(
            b"PK\x06\x06", 44, _WITH_ZIP64, _WITH_ZIP64, 0, 0, count, count, nbytes, offset
        ) + _ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, offset + nbytes, 1)
        count, nbytes, offset = min(count, UINT16), min(nbytes, UINT32), min(offset, UINT32)
    return end + _END.pack(b"PK\x05\x06", 0, 0, count, count, nbytes, offset, SEAL)


def seal(image: memoryview, layout: Layout, crcs: Sequence[int]) -> str:
    """Write everything but the records' bytes into an image; return the file's digest.

    Args:
        image: Writable, at least ``layout.nbytes`` bytes; the records' bytes are there already.
        layout: Where everything lies.
        crcs: CRC-32 of every record, in the layout's order.

    Returns:
        ``"crc32:…"``, the CRC-32 of all ``layout.nbytes`` bytes, combined from those of the parts.
    """
    whole = 0
    entries = []
    first: int | None = layout.nbytes
    for record, crc in zip(layout.records, crcs, strict=True):
        header = local_header(record, crc, image_nbytes=first)
        image[record.header_offset : record.offset] = header
        whole = combine(crc32(header, whole), crc, record.nbytes)
        entries.append(_directory_entry(record, crc))
        first = None
    tail = b"".join(entries) + _end(layout)
    whole = crc32(tail, whole)
    mark = b"asyncsave %d image=%08x index=%08x" % (VERSION, whole, crc32(tail))
    image[layout.directory_offset : layout.nbytes] = tail + mark
    return f"{DIGEST_PREFIX}{crc32(mark, whole):08x}"
