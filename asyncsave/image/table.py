"""What a writer process must know of an image besides its bytes: sizes, checksums and names of the records.

The table lies in the same memory, on the page behind the image, so that a save of twenty thousand
tensors travels as the same few bytes of message as one of three::

    magic | number of records | bytes of names | sizes | CRC-32s, -1 for one still to be taken | names

All figures are 64 bits wide, in the order of this machine: a table never leaves it. Names are ASCII,
with a null byte between two.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from asyncsave.image.layout import PAGE, UINT16, UINT32, Layout, plan

__all__ = ["TableError", "nbytes_with_table", "read_table", "write_table"]

_HEADER = struct.Struct("=8sQQ")
_MAGIC = b"AStable1"
_WORD = 8


class TableError(ValueError):
    """The table does not describe the image before it."""


def _start(nbytes: int) -> int:
    return (nbytes + PAGE - 1) & -PAGE


def _names(layout: Layout) -> bytes:
    return "\0".join([record.name for record in layout.records]).encode("ascii")


def nbytes_with_table(layout: Layout) -> int:
    """Return how many bytes an image and its table take together."""
    names = sum(len(record.name) + 1 for record in layout.records)
    return _start(layout.nbytes) + _HEADER.size + 2 * _WORD * len(layout.records) + names


def write_table(memory: memoryview, layout: Layout, crcs: Sequence[int | None]) -> None:
    """Write the table behind an image.

    Args:
        memory: At least :func:`nbytes_with_table` bytes.
        layout: Of the image that ``memory`` begins with.
        crcs: CRC-32 of every record, None where it is still to be taken.
    """
    names = _names(layout)
    table = b"".join(
        (
            _HEADER.pack(_MAGIC, len(crcs), len(names)),
            array("q", [record.nbytes for record in layout.records]).tobytes(),
            array("q", [-1 if crc is None else crc for crc in crcs]).tobytes(),
            names,
        )
    )
    start = _start(layout.nbytes)
    memory[start : start + len(table)] = table


def read_table(memory: memoryview, nbytes: int) -> tuple[Layout, list[int | None]]:
    """Read the table behind an image, trusting nothing.

    Args:
        memory: The image and what comes after it.
        nbytes: Size of the image.

    Returns:
        Its layout, and the CRC-32 of every record, None where it is still to be taken.

    Raises:
        TableError: This is no table, or not one of this image.
    """
    start = _start(nbytes)
    if nbytes < 0 or start + _HEADER.size > len(memory):
        raise TableError(f"no table behind {nbytes} bytes of image in {len(memory)} bytes of memory")
    magic, count, names_nbytes = _HEADER.unpack_from(memory, start)
    sizes_at = start + _HEADER.size
    if magic != _MAGIC or sizes_at + 2 * _WORD * count + names_nbytes > len(memory):
        raise TableError(f"no table at byte {start}: {bytes(magic)!r}, {count} records, {names_nbytes} bytes of names")
    crcs_at = sizes_at + _WORD * count
    names_at = crcs_at + _WORD * count
    sizes, crcs = array("q"), array("q")
    sizes.frombytes(memory[sizes_at:crcs_at])
    crcs.frombytes(memory[crcs_at:names_at])
    text = bytes(memory[names_at : names_at + names_nbytes])
    if text.count(0) + 1 != max(count, 1) or not text.isascii():
        raise TableError(f"the table has {count} records, and other names than those")
    names = text.decode("ascii").split("\0") if count else []
    if count and not (min(map(len, names)) >= 1 and max(map(len, names)) <= UINT16):
        raise TableError("a name in the table is empty or too long")
    if count and not (min(sizes) >= 0 and max(sizes) <= nbytes and min(crcs) >= -1 and max(crcs) <= UINT32):
        raise TableError("a size or a checksum in the table is out of bounds")
    layout = plan(zip(names, sizes, strict=True))
    if layout.nbytes != nbytes:
        raise TableError(f"the table describes an image of {layout.nbytes} bytes, not {nbytes}")
    return layout, [None if crc < 0 else crc for crc in crcs]
